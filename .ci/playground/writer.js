// A text that grows: ids, the cache of keys and values, and what there is to see of each step.
// It knows nothing of the page, and of onnxruntime only the function `run` that it is given.

import { surprise } from "./sampling.js";

// First token that is still seen: the context moves on by half a window whenever it is full
export function contextStart(n, window) {
  if (n <= window) return 0;
  const half = Math.max(1, Math.floor(window / 2));
  return Math.ceil((n - window) / half) * half;
}

// The ids of a text, and the characters that the model has no id for
export function encode(text, tokens) {
  const idOf = new Map(tokens.map((token, id) => [token, id]).filter(([token]) => token));
  const characters = [...text];
  return {
    ids: characters.filter((c) => idOf.has(c)).map((c) => idOf.get(c)),
    unknown: [...new Set(characters.filter((c) => !idOf.has(c)))],
  };
}

export class Writer {
  // facts: export.json; run: one call of the graph, see `load` of playground.js
  constructor(facts, run) {
    this.facts = facts;
    this.run = run;
    this.stride = facts.num_layers * facts.num_kv_heads * facts.head_size;
    this.keys = new Float32Array(facts.window * this.stride);
    this.values = new Float32Array(facts.window * this.stride);
    this.begin([]);
  }

  // Starts a new text
  begin(ids) {
    this.ids = [...ids];
    this.steps = []; // of each id that was read: its logits, and what it attended to
    this.surprises = []; // of each id: bits, unknown for the first
    this.start = 0;
    this.nPast = 0;
  }

  // Reads what was not read yet; afterwards the logits of the next id are there
  async catchUp() {
    const { facts } = this;
    const start = contextStart(this.ids.length, facts.window);
    if (start !== this.start) {
      this.start = start;
      this.nPast = 0;
    }
    const ids = this.ids.slice(this.start + this.nPast);
    if (!ids.length) return;
    const past = this.nPast * this.stride;
    const found = await this.run({
      ids,
      positions: ids.map((_, i) => this.nPast + i),
      keys: this.keys.subarray(0, past),
      values: this.values.subarray(0, past),
      nPast: this.nPast,
    });
    this.keys.set(found.keys, past);
    this.values.set(found.values, past);
    this.keep(found, ids.length);
    this.nPast += ids.length;
  }

  // Remembers the logits and the attention of the ids of one call
  keep(found, n) {
    const { num_layers, num_heads, n_known, never, window } = this.facts;
    const nMaps = num_layers * num_heads;
    const length = this.nPast + n;
    for (let t = 0; t < n; t++) {
      const i = this.start + this.nPast + t;
      if (this.steps[i]) continue; // read again after the context moved: what was seen stays
      const logits = found.logits.slice(t * n_known, (t + 1) * n_known);
      for (const id of never) logits[id] = -Infinity;
      const seen = this.nPast + t + 1;
      const maps = [];
      for (let m = 0; m < nMaps; m++) {
        const at = (m * n + t) * length;
        maps.push(found.attention.slice(at, at + seen));
      }
      this.steps[i] = { logits, maps, start: this.start };
      if (i + 1 < this.ids.length) this.surprises[i + 1] = surprise(logits, this.ids[i + 1]);
    }
    const old = this.ids.length - 4 * window; // what nobody looks at any more
    if (old >= 0 && this.steps[old]) this.steps[old].maps = null;
  }

  // Adds an id that was drawn from the last logits
  add(id) {
    this.surprises[this.ids.length] = surprise(this.before(this.ids.length).logits, id);
    this.ids.push(id);
  }

  // What character number i was drawn from; one behind the last is the next character
  before(i) {
    return this.steps[i - 1];
  }
}
