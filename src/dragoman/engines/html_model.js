// A trained model in plain JavaScript: text in, text out, without a network or a library.
//
// Models whose records point into their source have html_pointers.js before it; html_adapter.js follows.
// Top to bottom: weights, tokenizers, the Transformer, and the beam search.
// In comments, S is the number of source tokens, D the width of the model, V the size of the
// vocabulary. A vector is a Float32Array; a matrix too, row after row: (S, D) has S rows.

const BEGIN = 1, END = 2, UNKNOWN = 3, FIRST_TEXT = 4; // ids, in every vocabulary
const EPSILON = 1e-5; // of a layer norm
const BREATH_MS = 30; // the longest that the page is kept from answering the user

// ------------------------------------------------------------------ weights

/** Return the bytes that base64 text spells. */
function readBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** Return the tensors by name; `list` gives their kinds and shapes in the order of `bytes`. */
function readTensors(list, bytes) {
  const tensors = {};
  let place = 0;
  const take = (count) => bytes.slice(place, (place += count)).buffer;
  for (const { name, kind, rows, columns } of list) {
    const values = (tensors[name] = new Float32Array(rows * columns));
    if (kind === "float16") {
      const halves = new Uint16Array(take(2 * values.length));
      for (let i = 0; i < values.length; i++) values[i] = HALF[halves[i]];
    } else { // int8: each row has a scale
      const scales = new Float32Array(take(4 * rows));
      const integers = new Int8Array(take(values.length));
      for (let i = 0; i < values.length; i++) values[i] = integers[i] * scales[Math.floor(i / columns)];
    }
  }
  return tensors;
}

/** The number that each of the 65,536 patterns of 16 bits stands for (IEEE 754, binary16). */
const HALF = Float32Array.from({ length: 1 << 16 }, (_, bits) => {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
});

// ------------------------------------------------------------------ tokenizers

/** Text to ids and back, for kinds characters, symbols and bpe. */
class Tokenizer {
  /** `side`: kind, tokens (from id 4 on), for symbols the separator, for bpe the merges. */
  constructor(side) {
    this.side = side;
    this.ids = new Map(side.tokens.map((token, i) => [token, i + FIRST_TEXT]));
    if (side.kind === "bpe") this.ranks = new Map(side.merges.map((pair, rank) => [pair, rank]));
  }

  encode(text) {
    const { kind, form, separator } = this.side;
    if (form !== "none") text = text.normalize(form.toUpperCase());
    if (kind === "bpe") return (text.match(WORDS) ?? []).flatMap((word) => this.#encodeWord(word));
    const tokens = kind === "characters" ? [...text] : text === "" ? [] : text.split(separator);
    return tokens.map((token) => this.ids.get(token) ?? UNKNOWN);
  }

  /** Return the text of ids; special ids, and those beyond the tokens, give none. */
  decode(ids) {
    const { kind, form, separator, tokens } = this.side;
    const pieces = ids.map((id) => tokens[id - FIRST_TEXT]).filter((token) => token !== undefined);
    let text = pieces.join(kind === "symbols" ? separator : "");
    if (kind === "bpe") {
      const bytes = Uint8Array.from([...text], (character) => BYTE_OF.get(character));
      text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes); // true: it is kept
    }
    return form === "none" ? text : text.normalize("NFC");
  }

  /** Byte-pair encoding: merge the pair of the lowest rank, the leftmost of equals, until none is left. */
  #encodeWord(word) {
    const pieces = Array.from(new TextEncoder().encode(word), (byte) => CHARACTER_OF[byte]);
    const rankAt = (i) => this.ranks.get(`${pieces[i]} ${pieces[i + 1]}`) ?? Infinity;
    const ranks = pieces.map((_, i) => rankAt(i)); // of each piece with the next one
    for (;;) {
      let best = 0;
      for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[best]) best = i;
      if (ranks[best] === Infinity) return pieces.map((piece) => this.ids.get(piece));
      pieces.splice(best, 2, pieces[best] + pieces[best + 1]);
      ranks.splice(best, 1);
      ranks[best] = rankAt(best);
      if (best > 0) ranks[best - 1] = rankAt(best - 1);
    }
  }
}

const SPACE = String.raw`\p{White_Space}`; // not \s, which takes U+FEFF for a space
const WORDS = new RegExp(String.raw` ?[\p{L}\p{M}]+|\p{N}| ?[^${SPACE}\p{L}\p{M}\p{N}]+|${SPACE}+(?!\P{White_Space})|${SPACE}+`, "gu");
const PYTHON_SPACE = String.raw`${SPACE}\x1c-\x1f`; // of str.split and str.strip, and of \s in its re
const OUTER_SPACES = new RegExp(`^[${PYTHON_SPACE}]+|[${PYTHON_SPACE}]+$`, "gu");
const LEADING_TAGS = new RegExp(`^(?:(?:<[^<>${PYTHON_SPACE}]+> )+|<[^<>${PYTHON_SPACE}]+>$)`, "u");
const LONE_SURROGATE = /\p{Surrogate}/u;

/** Byte pieces are spelt with printable characters: printable bytes are themselves (GPT-2's alphabet). */
const CHARACTER_OF = [];
for (let byte = 0, others = 0; byte < 256; byte++) {
  const isPrintable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  CHARACTER_OF.push(String.fromCodePoint(isPrintable ? byte : 256 + others++));
}
const BYTE_OF = new Map(CHARACTER_OF.map((character, byte) => [character, byte]));

// ------------------------------------------------------------------ the Transformer

/** Return x W' + b for each row of x: (rows, I) -> (rows, O), with W of (O, I). */
function linear(x, { weight, bias }) {
  const outputs = bias.length, inputs = weight.length / outputs, rows = x.length / inputs;
  const y = new Float32Array(rows * outputs);
  for (let row = 0; row < rows; row++)
    for (let o = 0; o < outputs; o++)
      y[row * outputs + o] = bias[o] + dot(x, row * inputs, weight, o * inputs, inputs);
  return y;
}

/** Return the product of `length` values of a, from `i` on, and of b, from `j` on. */
function dot(a, i, b, j, length) {
  let first = 0, second = 0, third = 0, fourth = 0; // four sums at a time are faster than one
  const end = i + length;
  for (const last = end - 3; i < last; i += 4, j += 4) {
    first += a[i] * b[j];
    second += a[i + 1] * b[j + 1];
    third += a[i + 2] * b[j + 2];
    fourth += a[i + 3] * b[j + 3];
  }
  for (; i < end; i++, j++) first += a[i] * b[j];
  return first + second + third + fourth;
}

/** Return each row of x with mean 0 and variance 1, times the weight, plus the bias. */
function normalizeRows(x, { weight, bias }) {
  const width = weight.length, y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += width) {
    const row = x.subarray(start, start + width);
    const mean = row.reduce((sum, value) => sum + value, 0) / width;
    const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / width;
    const scale = 1 / Math.sqrt(variance + EPSILON);
    for (let i = 0; i < width; i++) y[start + i] = (row[i] - mean) * scale * weight[i] + bias[i];
  }
  return y;
}

/** Return the rows of a matrix, as views. */
function rowsOf(x, width) {
  return Array.from({ length: x.length / width }, (_, row) => x.subarray(row * width, (row + 1) * width));
}

/** Return the first or a later block of rows of a linear map: query, key and value are stored as one. */
function blockOf({ weight, bias }, start, stop) {
  const inputs = weight.length / bias.length;
  return { weight: weight.subarray(start * inputs, stop * inputs), bias: bias.subarray(start, stop) };
}

const ACTIVATIONS = {
  relu: (x) => Math.max(x, 0),
  gelu: (x) => (x / 2) * (2 - complementaryError(x / Math.SQRT2)),
};

/** 1 - erf(x), to 1.2e-7. Source: Numerical Recipes in C, section 6.2, erfcc. */
function complementaryError(x) {
  const t = 1 / (1 + Math.abs(x) / 2);
  const tail = t * Math.exp(ERROR_FACTORS.reduce((sum, factor) => sum * t + factor, 0) - x * x);
  return x >= 0 ? tail : 2 - tail;
}
const ERROR_FACTORS = [
  0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807,
  -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223,
];

/** The encoder, and one step of the decoder, whose past is kept as keys and values of each layer. */
class Transformer {
  /** `sizes`: model settings by their names, target_vocab_size, and the ids that are never_emitted. */
  constructor(sizes, tensors) {
    this.sizes = sizes;
    this.width = sizes.d_model;
    const get = (name) => ({ weight: tensors[`${name}.weight`], bias: tensors[`${name}.bias`] });
    const attention = (name) => {
      const all = { weight: tensors[`${name}.in_proj_weight`], bias: tensors[`${name}.in_proj_bias`] };
      const [query, key, value] = [0, 1, 2].map((i) => blockOf(all, i * this.width, (i + 1) * this.width));
      return { query, key, value, output: get(`${name}.out_proj`) };
    };
    const layers = (name, count, numNorms) =>
      Array.from({ length: count }, (_, i) => `transformer.${name}.layers.${i}`).map((layer) => ({
        self: attention(`${layer}.self_attn`),
        cross: numNorms === 3 ? attention(`${layer}.multihead_attn`) : null,
        norms: Array.from({ length: numNorms }, (_, i) => get(`${layer}.norm${i + 1}`)),
        linear1: get(`${layer}.linear1`),
        linear2: get(`${layer}.linear2`),
      }));
    this.encoder = layers("encoder", sizes.num_encoder_layers, 2);
    this.decoder = layers("decoder", sizes.num_decoder_layers, 3);
    this.encoderNorm = get("transformer.encoder.norm");
    this.decoderNorm = get("transformer.decoder.norm");
    this.targetEmbedding = tensors["target_embedding.weight"];
    this.sourceEmbedding = tensors["source_embedding.weight"] ?? this.targetEmbedding; // one, if shared
    const vocabSize = sizes.target_vocab_size; // matrices have more rows: a multiple of 8
    const output = tensors["output.weight"]
      ? get("output")
      : { weight: this.targetEmbedding, bias: new Float32Array(this.targetEmbedding.length / this.width) };
    this.output = blockOf(output, 0, vocabSize);
    this.sourcePositions = tensors["source_positions.weight"]; // learned ones
    this.targetPositions = tensors["target_positions.weight"];
  }

  /** The number of learned positions; Infinity: there is no limit. */
  get numPositions() {
    return this.sizes.positions === "learned" ? this.sizes.max_positions : Infinity;
  }

  /** Return the keys and values of the source, for each layer of the decoder. */
  encode(ids) {
    const width = this.width;
    let x = new Float32Array(ids.length * width); // (S, D)
    ids.forEach((id, position) => x.set(this.#embed(id, position, this.sourceEmbedding, this.sourcePositions), position * width));
    for (const layer of this.encoder) {
      x = this.#add(layer, 0, x, (y) => {
        const queries = rowsOf(linear(y, layer.self.query), width);
        const keys = rowsOf(linear(y, layer.self.key), width);
        const values = rowsOf(linear(y, layer.self.value), width);
        [...queries, ...keys].forEach((row, i) => this.#rotate(row, i % ids.length));
        const mixed = new Float32Array(y.length);
        queries.forEach((query, i) => mixed.set(this.#attend(query, keys, values), i * width));
        return linear(mixed, layer.self.output);
      });
      x = this.#feedForward(layer, x);
    }
    x = normalizeRows(x, this.encoderNorm);
    return this.decoder.map(({ cross }) => ({
      keys: rowsOf(linear(x, cross.key), width),
      values: rowsOf(linear(x, cross.value), width),
    }));
  }

  /** Return the past before the first token. */
  begin() {
    return this.decoder.map(() => ({ keys: [], values: [] }));
  }

  /**
   * Return the logits (V) of the token after `id`, the past that includes `id`, and the attention to
   * the source (S): the mean over the heads of the last layer. `past` itself does not change.
   */
  step(id, past, memory) {
    const grown = [], attention = new Float32Array(memory[0].keys.length);
    const position = past[0].keys.length;
    let x = this.#embed(id, position, this.targetEmbedding, this.targetPositions); // (D)
    this.decoder.forEach((layer, i) => {
      x = this.#add(layer, 0, x, (y) => {
        const query = linear(y, layer.self.query), key = linear(y, layer.self.key);
        this.#rotate(query, position);
        this.#rotate(key, position);
        const keys = [...past[i].keys, key];
        const values = [...past[i].values, linear(y, layer.self.value)];
        grown.push({ keys, values });
        return linear(this.#attend(query, keys, values), layer.self.output);
      });
      x = this.#add(layer, 1, x, (y) => {
        const query = linear(y, layer.cross.query);
        const seen = i === this.decoder.length - 1 ? attention : null;
        return linear(this.#attend(query, memory[i].keys, memory[i].values, seen), layer.cross.output);
      });
      x = this.#feedForward(layer, x);
    });
    const logits = linear(normalizeRows(x, this.decoderNorm), this.output);
    for (const never of this.sizes.never_emitted) logits[never] = -Infinity;
    return { logits, past: grown, attention };
  }

  /** Return the scaled embedding of a token, plus its position, unless positions rotate. */
  #embed(id, position, embedding, learned) {
    const width = this.width, scale = Math.sqrt(width);
    const x = embedding.slice(id * width, (id + 1) * width).map((value) => value * scale);
    if (this.sizes.positions === "rotary") return x;
    const added = learned ? learned.subarray(position * width, (position + 1) * width) : sinusoids(position, width);
    return x.map((value, i) => value + added[i]);
  }

  /** Rotate value i of each head with value i + half a head, by an angle that grows with the position. */
  #rotate(x, position) {
    if (this.sizes.positions !== "rotary") return;
    const headWidth = this.width / this.sizes.nhead, half = headWidth / 2;
    const angles = sinusoids(position, headWidth);
    for (let start = 0; start < x.length; start += headWidth) {
      for (let i = start; i < start + half; i++) {
        const sine = angles[2 * (i - start)], cosine = angles[2 * (i - start) + 1];
        const first = x[i], second = x[i + half];
        x[i] = first * cosine - second * sine;
        x[i + half] = second * cosine + first * sine;
      }
    }
  }

  /** Return the mean of the values (D), weighted in each head by the softmax of query times key. */
  #attend(query, keys, values, seen = null) {
    const { nhead } = this.sizes, headWidth = this.width / nhead;
    const mixed = new Float32Array(this.width);
    for (let head = 0; head < nhead; head++) {
      const start = head * headWidth;
      const scores = keys.map((key) => dot(query, start, key, start, headWidth) / Math.sqrt(headWidth));
      const highest = scores.reduce((most, score) => Math.max(most, score), -Infinity);
      const weights = scores.map((score) => Math.exp(score - highest));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      weights.forEach((weight, i) => {
        const share = weight / total;
        if (seen) seen[i] += share / nhead;
        for (let j = start; j < start + headWidth; j++) mixed[j] += share * values[i][j];
      });
    }
    return mixed;
  }

  #feedForward(layer, x) {
    const activate = ACTIVATIONS[this.sizes.activation];
    return this.#add(layer, layer.norms.length - 1, x, (y) => linear(linear(y, layer.linear1).map(activate), layer.linear2));
  }

  /** Return x with a sub-layer added: x + f(norm(x)) with pre-norm, else norm(x + f(x)). */
  #add(layer, number, x, sublayer) {
    const norm = layer.norms[number], isFirst = this.sizes.norm_first;
    const added = sublayer(isFirst ? normalizeRows(x, norm) : x);
    const sum = x.map((value, i) => value + added[i]);
    return isFirst ? sum : normalizeRows(sum, norm);
  }
}

/** Return the sinusoidal encoding of a position, sines and cosines in turn, with PyTorch's 32-bit angles. */
function sinusoids(position, width) {
  const { fround } = Math, encoding = new Float32Array(width);
  for (let i = 0; i < width; i += 2) {
    const rate = fround(Math.exp(fround(i * fround(-Math.log(10000) / width))));
    const angle = fround(position * rate);
    encoding[i] = Math.sin(angle);
    if (i + 1 < width) encoding[i + 1] = Math.cos(angle);
  }
  return encoding;
}

// ------------------------------------------------------------------ the search

/**
 * Return the hypotheses of a source, best first: dragoman's beam search, which is greedy for a beam of 1.
 *
 * At each step the candidates are the 2K best continuations of the K hypotheses. Of the first K, those
 * that end, or have the longest length, are done. The best K without an end continue.
 */
async function search(model, sourceIds, decoding) {
  const beam = decoding.beam_size, wanted = Math.min(decoding.num_hypotheses, beam);
  const { shortest, longest } = limitLengths(sourceIds.length, decoding, model.numPositions);
  const memory = model.encode(sourceIds), done = [];
  let live = [{ ids: [], score: 0, past: model.begin(), attention: [] }], hasBestEnded = false;
  for (let position = 0; position < longest && live.length; position++) {
    const candidates = []; // best first
    for (const parent of live) {
      const step = model.step(parent.ids.at(-1) ?? BEGIN, parent.past, memory);
      const logProbs = logSoftmax(applyRules(step.logits, parent.ids, shortest, decoding));
      logProbs.forEach((logProb, id) => {
        const score = parent.score + logProb, worst = candidates[2 * beam - 1];
        if (score === -Infinity || (worst && score <= worst.score)) return;
        const place = candidates.findIndex((one) => one.score < score);
        candidates.splice(place < 0 ? candidates.length : place, 0, { id, score, parent, step });
        candidates.length = Math.min(candidates.length, 2 * beam);
      });
      await breathe();
    }
    const isLast = position + 1 === longest;
    candidates.slice(0, beam).forEach(({ id, score, parent, step }, place) => {
      if (id !== END && !isLast) return;
      hasBestEnded ||= place === 0;
      done.push({
        ids: id === END ? parent.ids : [...parent.ids, id],
        score,
        normalizedScore: normalizeScore(score, position + 1, decoding),
        isComplete: id === END,
        attention: [...parent.attention, step.attention],
      });
    });
    live = candidates.filter(({ id }) => id !== END).slice(0, beam).map(({ id, score, parent, step }) => ({
      ids: [...parent.ids, id], score, past: step.past, attention: [...parent.attention, step.attention],
    }));
    if (isOver(done, live, hasBestEnded, longest, wanted, decoding)) break;
  }
  return done.sort((one, other) => other.normalizedScore - one.normalizedScore).slice(0, decoding.num_hypotheses);
}

/** Return whether decoding.stop is met. */
function isOver(done, live, hasBestEnded, longest, wanted, decoding) {
  if (decoding.stop === "exact" && live.length) { // an upper bound: scores only fall
    const scores = done.map((one) => one.normalizedScore).sort((one, other) => other - one);
    return scores.length >= wanted && scores[wanted - 1] >= normalizeScore(live[0].score, longest, decoding);
  }
  if (decoding.length_penalty === 0) return hasBestEnded && done.length >= wanted;
  return done.length >= decoding.beam_size;
}

/** Return the fewest tokens of an output, without its end, and the most, with it. */
function limitLengths(sourceLength, decoding, numPositions) {
  const rounded = Math.ceil(sourceLength / 16) * 16;
  const byRatio = Math.floor(decoding.max_length_ratio * rounded) + decoding.max_length_extra;
  const longest = Math.min(byRatio, decoding.max_length || Infinity, numPositions);
  const shortest = Math.floor(decoding.min_length_ratio * sourceLength) + decoding.min_length;
  return { shortest: Math.min(shortest, longest - 1), longest };
}

/** Mask the tokens that may not come after `ids`; if none is left, the output ends. */
function applyRules(logits, ids, shortest, decoding) {
  const size = decoding.no_repeat_ngram, last = ids.slice(ids.length - size + 1);
  const forbidden = [...decoding.forbidden_ids];
  for (let i = 0; size > 0 && i + size <= ids.length; i++)
    if (last.every((id, j) => id === ids[i + j])) forbidden.push(ids[i + size - 1]);
  if (ids.length < shortest) forbidden.push(END);
  for (const id of forbidden) logits[id] = -Infinity;
  if (logits.every((logit) => logit === -Infinity)) logits[END] = 0;
  return logits;
}

function logSoftmax(logits) {
  const highest = logits.reduce((most, logit) => Math.max(most, logit), -Infinity);
  const logTotal = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - highest), 0));
  return logits.map((logit) => logit - highest - logTotal);
}

/** Return a score for comparison with hypotheses of other lengths, the end included. */
function normalizeScore(score, length, { length_norm: norm, length_penalty: penalty }) {
  return norm === "wu" ? score / ((5 + length) / 6) ** penalty : score / Math.max(1, length) ** penalty;
}

/** Return the log-probability of a given target, without rules. */
function scoreTarget(model, sourceIds, targetIds) {
  const memory = model.encode(sourceIds);
  let score = 0, past = model.begin();
  [...targetIds, END].forEach((id, i) => {
    const step = model.step(i ? targetIds[i - 1] : BEGIN, past, memory);
    past = step.past;
    score += logSoftmax(step.logits)[id];
  });
  return score;
}

/** Return the probability that an output is exactly right: 1 - (1 - p)^(1 / T), by the calibration's T. */
function findConfidence({ score, isComplete }, temperature) {
  if (!isComplete || Number.isNaN(score)) return 0;
  const evidence = -Math.log(-Math.expm1(Math.min(score, -1e-9)));
  return Number((1 - Math.exp(-evidence / temperature)).toFixed(4));
}

/** Let the page answer the user, if it has not for a while. A timer would be slow in a hidden tab. */
async function breathe() {
  if (performance.now() - lastBreath < BREATH_MS) return;
  await new Promise((resume) => {
    waiting.push(resume);
    channel.port2.postMessage(null);
  });
  lastBreath = performance.now();
}
const channel = new MessageChannel(), waiting = [];
channel.port1.onmessage = () => waiting.shift()();
let lastBreath = 0;
