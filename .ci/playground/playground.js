// The page: buttons, sliders, pictures. What is computed is in writer.js and sampling.js;
// onnxruntime-web, the model and all else come from this folder.

import { argmax, chances, mulberry32, pick, softmax } from "./sampling.js";
import { Writer, encode } from "./writer.js";

const HERE = new URL(".", import.meta.url);
const ROWS = 10; // characters in the table
const MAP = 48; // positions that a small map shows
const FRAME = 24; // milliseconds between two pictures, while it writes
const SLOW = 300; // milliseconds between two pictures of all heads, while it writes
const root = document.getElementById("playground");
const $ = (name) => document.getElementById(`pg-${name}`);
const SHOWN = { " ": "␣ space", "\n": "↵ new line" };

let facts, writer;
let running = false;
let drawn = 0; // how many characters were drawn since the beginning
let place = 0; // the character that is looked at; behind the last one: the next
let begunFrom = ""; // the beginning of the text that is there
let head = 0; // number of the chosen attention head, over all layers

const nextFrame = () => new Promise((done) => setTimeout(done));
const shownToken = (id) => SHOWN[facts.tokens[id]] ?? (facts.tokens[id] || "end of text");

function tell(message, state) {
  $("message").textContent = message;
  if (state) root.dataset.state = state;
}

// Opening

async function fetchWhole(name, kind) {
  const answer = await fetch(new URL(name, HERE));
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return answer[kind]();
}

async function load() {
  const built = await fetchWhole("built.json", "json");
  if (!built.runtime) {
    tell(`This build of the site has no demo: ${built.why}.`, "missing");
    return;
  }
  tell("The model is on its way: a few megabytes, once.", "loading");
  const [ort, about, graph] = await Promise.all([
    import(new URL("ort.wasm.min.mjs", HERE)),
    fetchWhole("export.json", "json"),
    fetchWhole("model.onnx", "arrayBuffer"),
  ]);
  facts = about;
  ort.env.wasm.numThreads = 1; // several want headers that a plain host does not send
  ort.env.wasm.wasmPaths = HERE.href;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(graph);
  writer = new Writer(facts, (given) => call(ort, session, given));
  prepare();
  await restart();
  $("main").hidden = false;
  tell("The model is here. It writes in your browser; nothing leaves this page.", "ready");
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) await write();
}

// One call of the graph; see engine.export for what goes in and comes out
async function call(ort, session, { ids, positions, keys, values, nPast }) {
  const whole = (numbers) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt));
  const shape = [nPast, facts.num_layers, facts.num_kv_heads, facts.head_size];
  const found = await session.run({
    ids: whole(ids),
    positions: whole(positions),
    past_keys: new ort.Tensor("float32", keys, shape),
    past_values: new ort.Tensor("float32", values, shape),
  });
  return {
    logits: found.logits.data,
    keys: found.new_keys.data,
    values: found.new_values.data,
    attention: found.attention.data,
  };
}

// Settings

function settings() {
  return {
    temperature: $("temperature").valueAsNumber,
    topK: $("top-k").valueAsNumber,
    topP: $("top-p").valueAsNumber,
    minP: $("min-p").valueAsNumber,
  };
}

function showSettings() {
  const { temperature, topK, topP, minP } = settings();
  $("temperature-is").value = temperature === 0 ? "0: the most likely" : temperature.toFixed(2);
  $("top-k-is").value = topK === 0 ? "0: all" : topK;
  $("top-p-is").value = topP === 1 ? "1: all" : topP.toFixed(2);
  $("min-p-is").value = minP === 0 ? "0: all" : minP.toFixed(2);
}

// Writing

async function restart() {
  running = false;
  begunFrom = $("beginning").value;
  const { ids, unknown } = encode(begunFrom, facts.tokens);
  const newLine = facts.tokens.indexOf("\n");
  writer.begin(ids.length ? ids : [Math.max(newLine, 0)]);
  drawn = 0;
  if (unknown.length) tell(`The model has no character ${unknown.join(" ")}; it was left out.`);
  $("text").replaceChildren();
  await writer.catchUp();
  look(writer.ids.length);
  render();
}

// Draws one character; false at the end of the text
async function step() {
  await writer.catchUp();
  const number = mulberry32($("seed").valueAsNumber || 0, drawn);
  const id = pick(writer.before(writer.ids.length).logits, number, settings());
  if (facts.ends.includes(id)) return false;
  writer.add(id);
  drawn += 1;
  root.dataset.first ??= Math.round(performance.now());
  return true;
}

async function write(count = $("count").valueAsNumber || 1) {
  if (running) return;
  if ($("beginning").value !== begunFrom) await restart();
  setRunning(true);
  const begun = performance.now();
  let shown = begun;
  let mapped = begun;
  let n = 0;
  while (running && n < count && (await step())) {
    n += 1;
    if (performance.now() - shown > FRAME) {
      follow();
      tellSpeed(n, begun);
      if (performance.now() - mapped > SLOW) {
        drawHeads();
        mapped = performance.now();
      }
      await nextFrame();
      shown = performance.now();
    }
  }
  tellSpeed(n, begun);
  const stopped = !running;
  setRunning(false);
  await writer.catchUp();
  follow();
  drawHeads();
  say(n);
  root.dataset.state = stopped ? "stopped" : "written";
}

function tellSpeed(n, begun) {
  const rate = Math.round((1000 * n) / (performance.now() - begun));
  root.dataset.rate = rate;
  $("speed").textContent = `${writer.ids.length} characters; ${rate} a second`;
}

// What a screen reader says: the lines of the last run, once it is over
function say(n) {
  const ids = writer.ids.slice(writer.ids.length - n);
  $("said").textContent = ids.map((id) => facts.tokens[id]).join("");
}

function setRunning(on) {
  running = on;
  if (on) root.dataset.state = "writing";
  for (const name of ["write", "step", "again"]) $(name).disabled = on;
  $("stop").disabled = !on;
}

async function once(event) {
  event.preventDefault();
  if (running) return;
  await write(1);
}

// Looking inside

// Chooses character number i; one behind the last is the next
function look(i) {
  place = Math.min(Math.max(i, 1), writer.ids.length);
  $("place").max = writer.ids.length;
  $("place").value = place;
}

function follow() {
  look(writer.ids.length);
  render();
}

function render() {
  drawText();
  drawTable();
  describePlace();
  if (!running) drawHeads();
}

function drawText() {
  const text = $("text");
  const { ids, surprises } = writer;
  const given = ids.length - drawn;
  for (let i = text.childElementCount; i < ids.length; i++) {
    const span = document.createElement("span");
    span.textContent = facts.tokens[ids[i]];
    span.className = i < given ? "pg-given" : "";
    text.append(span);
  }
  if (running) text.scrollTop = text.scrollHeight;
  const mode = root.querySelector("[name=pg-colour]:checked").value;
  const from = running && mode === "surprise" && text.dataset.colour === mode ? painted : 0;
  text.dataset.colour = mode;
  const shares = mode === "attention" ? attentionShares() : null;
  for (let i = from; i < ids.length; i++) {
    const share = shares ? (shares[i] ?? 0) : mode === "none" ? 0 : surprises[i] / 8 || 0;
    text.children[i].style.setProperty("--share", Math.min(share, 1).toFixed(2));
  }
  painted = ids.length;
  chosen?.classList.remove("pg-chosen");
  chosen = text.children[place];
  chosen?.classList.add("pg-chosen");
}
let painted = 0; // characters whose surprise has its colour
let chosen; // the span of the character that is looked at

// The attention of the chosen head, when it foretold the chosen character, as shares of the largest
function attentionShares() {
  const step = writer.before(place);
  const map = step?.maps?.[head];
  if (!map) return [];
  const largest = Math.max(...map);
  const shares = new Array(step.start).fill(0);
  for (const weight of map) shares.push(weight / largest);
  return shares;
}

function drawTable() {
  const step = writer.before(place);
  if (!step) return;
  const model = softmax(step.logits);
  const from = chances(step.logits, settings());
  const order = model.map((_, id) => id).sort((a, b) => model[b] - model[a]);
  const isNext = place === writer.ids.length;
  $("caption").textContent = isNext ? "The next character" : `Character ${place + 1}, as foretold`;
  const body = $("rows");
  while (body.rows.length < ROWS) body.append(newRow());
  const scale = Math.max(...model, ...from);
  order.slice(0, ROWS).forEach((id, row) => {
    fillRow(body.rows[row], id, model[id], from[id], scale);
  });
}

function newRow() {
  const row = document.createElement("tr");
  row.innerHTML =
    '<th scope="row"></th><td></td><td></td>' +
    '<td aria-hidden="true"><div class="pg-bar"></div><div class="pg-bar pg-in"></div></td>';
  return row;
}

function fillRow(row, id, before, after, scale) {
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  row.cells[0].textContent = shownToken(id);
  row.cells[1].textContent = percent(before);
  row.cells[2].textContent = after > 0 ? percent(after) : "cut off";
  row.className = after > 0 ? "" : "pg-off";
  const [outer, inner] = row.querySelectorAll(".pg-bar");
  outer.style.width = `${(100 * before) / scale}%`;
  inner.style.width = `${(100 * after) / scale}%`;
}

function describePlace() {
  const bits = writer.surprises[place];
  const isNext = place === writer.ids.length;
  const which = isNext ? "the next one" : `${place + 1}: ${shownToken(writer.ids[place])}`;
  $("place-is").value = isNext || bits === undefined ? which : `${which}, ${bits.toFixed(1)} bits`;
  const name = `layer ${Math.floor(head / facts.num_heads) + 1}, head ${(head % facts.num_heads) + 1}`;
  const step = writer.before(place);
  if (!step?.maps) return;
  const best = step.start + argmax(Array.from(step.maps[head]));
  const weight = Math.max(...step.maps[head]);
  $("head-is").textContent =
    `Attention: ${name} looks most at character ${best + 1}, ` +
    `${shownToken(writer.ids[best])} (${Math.round(100 * weight)} %)`;
}

// Small maps: a row for each of the last positions, a column for each that it sees

function makeHeads() {
  const { num_layers, num_heads } = facts;
  $("heads").style.gridTemplateColumns = `repeat(${num_heads}, 1fr)`;
  for (let i = 0; i < num_layers * num_heads; i++) {
    const button = document.createElement("button");
    button.type = "button";
    const name = `layer ${Math.floor(i / num_heads) + 1}, head ${(i % num_heads) + 1}`;
    button.setAttribute("aria-label", name);
    button.title = name;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = MAP;
    button.append(canvas);
    button.onclick = () => chooseHead(i);
    $("heads").append(button);
  }
  markHead();
}

function chooseHead(i) {
  head = i;
  markHead();
  root.querySelector("[name=pg-colour][value=attention]").checked = true;
  render();
}

function markHead() {
  [...$("heads").children].forEach((b, i) => b.setAttribute("aria-pressed", i === head));
}

function drawHeads() {
  const last = Math.min(place, writer.steps.length) - 1;
  const first = Math.max(0, last - MAP + 1);
  const colour = getComputedStyle($("speed")).color.match(/\d+/g).map(Number);
  [...$("heads").children].forEach((button, m) => {
    const context = button.firstChild.getContext("2d");
    const image = context.createImageData(MAP, MAP);
    for (let i = first; i <= last; i++) drawRow(image, writer.steps[i], m, i - first, first, colour);
    context.putImageData(image, 0, 0);
  });
}

function drawRow(image, step, m, row, first, colour) {
  if (!step?.maps) return;
  const map = step.maps[m];
  const largest = Math.max(...map);
  for (let column = 0; column < MAP; column++) {
    const weight = map[first + column - step.start];
    if (weight === undefined) continue;
    const at = 4 * (row * MAP + column);
    image.data.set([...colour.slice(0, 3), 255 * Math.sqrt(weight / largest)], at);
  }
}

// What a hand can do

function prepare() {
  $("top-k").max = facts.n_known;
  showSettings();
  makeHeads();
  for (const name of ["temperature", "top-k", "top-p", "min-p"]) {
    $(name).oninput = () => {
      showSettings();
      drawTable();
    };
  }
  $("write").onclick = () => write();
  $("stop").onclick = () => {
    running = false;
  };
  $("step").onclick = once;
  $("again").onclick = restart;
  $("seed").onchange = $("beginning").onchange = () => (running ? null : restart());
  $("place").oninput = () => {
    look($("place").valueAsNumber);
    render();
  };
  $("text").onclick = (event) => {
    const i = [...$("text").children].indexOf(event.target);
    if (i > 0) look(i);
    render();
  };
  for (const radio of root.querySelectorAll("[name=pg-colour]")) radio.onchange = render;
}

if (typeof WebAssembly !== "object") {
  tell("This browser has no WebAssembly, which the demo needs; the lessons show the same.", "none");
} else {
  load().catch((error) => tell(`The demo could not start: ${error.message}.`, "failed"));
}
