// The filters of shakespeare_neox.generate and the draws of shakespeare_neox.engine.export,
// number for number: tests/test_export.py compares them in Node.

// The number i of a seed, from 0 to 1 without 1 (mulberry32, Tommy Ettinger, public domain)
export function mulberry32(seed, i) {
  const state = (seed + Math.imul(i + 1, 0x6d2b79f5)) | 0;
  let mixed = Math.imul(state ^ (state >>> 15), state | 1);
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
}

// Probabilities of logits; -Infinity becomes 0
export function softmax(logits) {
  const largest = Math.max(...logits);
  const weights = Array.from(logits, (x) => Math.exp(x - largest));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => w / sum);
}

export function argmax(values) {
  let best = 0;
  values.forEach((value, i) => {
    if (value > values[best]) best = i;
  });
  return best;
}

function drop(logits, isDropped) {
  return logits.map((x, i) => (isDropped(i) ? -Infinity : x));
}

// The k most likely
export function keepTopK(logits, k) {
  const least = [...logits].sort((a, b) => b - a)[Math.min(k, logits.length) - 1];
  return drop(logits, (i) => logits[i] < least);
}

// The fewest whose probabilities reach p
export function keepTopP(logits, p) {
  const probabilities = softmax(logits);
  const order = logits.map((_, i) => i).sort((a, b) => logits[a] - logits[b] || a - b);
  const dropped = new Set();
  let sum = 0;
  for (const i of order.slice(0, -1)) {
    sum += probabilities[i];
    if (sum > 1 - p) break;
    dropped.add(i);
  }
  return drop(logits, (i) => dropped.has(i));
}

// Those with at least a share p of the largest probability
export function keepMinP(logits, p) {
  const probabilities = softmax(logits);
  const least = p * Math.max(...probabilities);
  return drop(logits, (i) => probabilities[i] < least);
}

// Logits after temperature and truncation: {temperature, topK, topP, minP}
export function filterLogits(logits, { temperature = 1, topK = 0, topP = 1, minP = 0 } = {}) {
  let kept = Array.from(logits, (x) => Math.fround(x / temperature));
  if (topK > 0) kept = keepTopK(kept, topK);
  if (topP < 1) kept = keepTopP(kept, topP);
  if (minP > 0) kept = keepMinP(kept, minP);
  return kept;
}

// What is drawn from, with these settings; temperature 0 leaves the most likely alone
export function chances(logits, settings = {}) {
  if (settings.temperature === 0) {
    const best = argmax(Array.from(logits));
    return Array.from(logits, (_, i) => (i === best ? 1 : 0));
  }
  return softmax(filterLogits(logits, settings));
}

// The id on which a number from 0 to 1 falls
export function pick(logits, number, settings = {}) {
  const probabilities = chances(logits, settings);
  let reached = 0;
  let last = 0;
  for (let i = 0; i < probabilities.length; i++) {
    reached += probabilities[i];
    if (probabilities[i] > 0) last = i;
    if (reached > number) return i;
  }
  return last; // rounding left the sum a little below 1
}

// How surprising an id is: bits, by the model's own probabilities
export function surprise(logits, id) {
  return -Math.log2(softmax(logits)[id]);
}
