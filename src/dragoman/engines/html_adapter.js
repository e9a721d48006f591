// What page.js calls in a page with its own model: requests and answers in the form of the server's.

/** A request that cannot be answered: where in it, and why. */
class RequestError extends Error {
  constructor(where, message) {
    super(message);
    this.where = where;
  }
}

/** What page.js calls: the answers have the form of the server's, /v1/models and /v1/predict. */
class Adapter {
  constructor(about, model) {
    this.about = about;
    this.model = model;
    this.source = new Tokenizer(about.source);
    this.target = new Tokenizer(about.target);
    this.featureIds = new Map(about.features.map((symbol, i) => [symbol, about.source.tokens.length + FIRST_TEXT + i]));
    const first = about.source.tokens.length + FIRST_TEXT + about.features.length;
    this.pointers = about.pointers && new Pointers(about.pointers, this.source, first);
  }

  async describe() {
    return { models: [this.about.description] };
  }

  async predict({ source, features, decoding = {}, nbest = null, alignment = false }) {
    const sources = typeof source === "string" ? [source] : source;
    const settings = this.#readDecoding(decoding, nbest);
    const predictions = [];
    for (const [row, text] of sources.entries()) {
      const place = Array.isArray(source) ? `[${row}]` : "";
      const sourceIds = this.encodeSource(text, Array.isArray(features?.[0]) ? features[row] : (features ?? []), place);
      if (!text.slice(this.#findTags(text).length).replaceAll(OUTER_SPACES, "")) {
        predictions.push(null); // an empty source has no output
        continue;
      }
      const found = await search(this.model, sourceIds, settings);
      const [best] = found;
      const shown = found.map((one) => ({
        output: this.decodeTarget(one.ids, text),
        confidence: findConfidence(one, this.about.temperature),
        score: one.score,
      }));
      const prediction = { ...shown[0], truncated: !best.isComplete };
      if (nbest !== null) prediction.nbest = shown;
      if (alignment)
        prediction.alignment = {
          source_tokens: sourceIds.map((id) => this.about.source_names[id]),
          target_tokens: [...best.ids, ...(best.isComplete ? [END] : [])].map((id) => this.about.target_names[id]),
          weights: best.attention.map((row) => [...row]),
        };
      predictions.push(prediction);
    }
    const { name, digest } = this.about.description;
    return { model: name, digest, predictions };
  }

  /**
   * Return the ids of a source: its features, its text, in their frame. `values`: those of the feature
   * columns; `place`: of the source in a list, for errors, as "[2]".
   */
  encodeSource(text, values, place = "") {
    const { features: labels } = this.about.description, separator = this.about.features_separator;
    if (values.length !== labels.length)
      throw new RequestError(`features${place}`, `give ${labels.length} for each source: ${labels.join(", ") || "none"}`);
    const split = (value) => value.split(separator).map((part) => part.replaceAll(OUTER_SPACES, "")).filter((part) => part);
    const symbols = labels.flatMap((label, i) => (separator ? split(values[i]) : [values[i]]).map((part) => `${label}=${part}`));
    const tags = this.#findTags(text), rest = text.slice(tags.length);
    if (tags) symbols.push(...tags.trim().split(" "));
    if (LONE_SURROGATE.test(text) && this.source.side.kind === "bpe")
      throw new RequestError(`source${place}`, "it holds half a character, which is no text");
    const { frame } = this.about, ids = frame.includes("begin") ? [BEGIN] : [];
    ids.push(...symbols.map((symbol) => this.featureIds.get(symbol) ?? UNKNOWN), ...(this.pointers ?? this.source).encode(rest));
    if (frame.includes("end")) ids.push(END);
    if (ids.length > this.model.numPositions)
      throw new RequestError(`source${place}`, `${ids.length} tokens, more than the ${this.model.numPositions} of the model`);
    return ids;
  }

  /** Return the text of an output for the source `text`. */
  decodeTarget(ids, text) {
    return this.pointers ? this.pointers.decode(ids, text.slice(this.#findTags(text).length)) : this.target.decode(ids);
  }

  #findTags(text) {
    return (this.about.leading_tags && text.match(LEADING_TAGS)?.[0]) || "";
  }

  /** Return the model's decoding settings with those of a request; the beam has room for `nbest`. */
  #readDecoding(decoding, nbest) {
    const defaults = this.about.description.decoding;
    for (const name of Object.keys(decoding))
      if (!(name in defaults))
        throw new RequestError(`decoding.${name}`, `this page has only ${Object.keys(defaults).join(", ")}`);
    const settings = { ...defaults, beam_size: Math.max(defaults.beam_size, nbest), ...decoding, num_hypotheses: nbest ?? 1 };
    if (nbest > settings.beam_size)
      throw new RequestError("nbest", `${nbest} is more than the ${settings.beam_size} of decoding.beam_size`);
    const forbidden_ids = settings.forbidden_tokens.map((token) => this.about.target_names.indexOf(token));
    if (forbidden_ids.includes(-1))
      throw new RequestError("decoding.forbidden_tokens", "one of them is not in the target's vocabulary");
    return { ...settings, forbidden_ids };
  }
}

const about = JSON.parse(document.getElementById("about").textContent);
const tensors = readTensors(about.tensors, readBase64(document.getElementById("weights").textContent));
window.adapter = new Adapter(about, new Transformer(about.sizes, tensors));
window.check = { // what the export is checked by, before it is kept
  encode: (text, features) => window.adapter.encodeSource(text, features),
  decode: (ids, text) => window.adapter.decodeTarget(ids, text),
  search: (ids, decoding) => search(window.adapter.model, ids, decoding),
  score: (source, target) => scoreTarget(window.adapter.model, source, target),
};
