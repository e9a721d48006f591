// Records that point into their source, for html_model.js, whose names it uses once that has run.

/** Records that point into their source: see tokenizers/pointers.py. */
class Pointers {
  /** `first`: the id of the first number; numbers, cases and structures follow each other. */
  constructor(stored, tokenizer, first) {
    Object.assign(this, stored, { tokenizer, first, firstCase: first + stored.num_words });
    this.firstStructure = this.firstCase + 3;
    this.pattern = new RegExp(numberedWords()[stored.words], "gu");
  }

  #findWords(text) {
    const words = Array.from(text.matchAll(this.pattern), (match) => [match.index, match.index + match[0].length]);
    return words.slice(0, this.num_words);
  }

  #compose(text) {
    return this.tokenizer.side.form === "none" ? text : text.normalize("NFC"); // as outputs are
  }

  encode(text) {
    text = this.#compose(text);
    const words = this.#findWords(text);
    let place = 0;
    const ids = words.flatMap(([, end], number) => {
      const piece = text.slice(place, (place = end)), word = piece.replace(OUTER_SPACES, ""), lower = word.toLowerCase();
      const [first] = word, rest = word.slice(first.length);
      const kind = word === lower ? -1 : rest === rest.toLowerCase() ? 0 : word === word.toUpperCase() ? 1 : 2;
      return [this.first + number, ...(kind < 0 ? [] : [this.firstCase + kind]), ...this.tokenizer.encode(piece.toLowerCase())];
    });
    const rest = text.slice(place), hasMore = words.length === this.num_words && rest.replace(OUTER_SPACES, "") !== "";
    return [...ids, ...(hasMore ? [UNKNOWN] : []), ...this.tokenizer.encode(rest.toLowerCase())];
  }

  decode(ids, source) {
    source = this.#compose(source);
    const words = this.#findWords(source), texts = [];
    const escape = (text) => (this.form === "json" ? JSON.stringify(text).slice(1, -1) : text);
    let spelled = [], before = -1;
    for (const id of [...ids, null]) {
      if (id !== null && id < this.first) {
        spelled.push(id);
        continue;
      }
      if (spelled.length) {
        texts.push(this.tokenizer.decode(spelled));
        [spelled, before] = [[], -1];
      }
      if (id === null || (id >= this.firstCase && id < this.firstStructure)) continue;
      if (id >= this.firstStructure) {
        texts.push(this.structures[id - this.firstStructure]);
        before = -1;
        continue;
      }
      const number = id - this.first, known = number < words.length;
      const follows = known && before >= 0 && number === before + 1;
      texts.push(known ? escape(source.slice(follows ? words[before][1] : words[number][0], words[number][1])) : "\ufffd");
      before = known ? number : -1;
    }
    if (texts[0]?.startsWith(this.lead)) texts[0] = texts[0].slice(this.lead.length);
    return texts.join("");
  }
}

/** Return the patterns of the words that have numbers. */
function numberedWords() {
  const LETTER = String.raw`\p{L}\p{N}_`; // of \w in Python
  const ALONE = String.raw`[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\u{20000}-\u{3ffff}]`;
  return { // as in tokenizers/pointers.py
    spaces: `[^${PYTHON_SPACE}]+`,
    punctuation: String.raw`[${LETTER}](?:[^${PYTHON_SPACE}]*[${LETTER}\p{M}])?|[^${LETTER}${PYTHON_SPACE}]+`,
    all: String.raw`\p{Nd}+|${ALONE}\p{M}*|(?:(?!${ALONE})[\p{L}\p{Nl}\p{No}]\p{M}*)+|[^${LETTER}${PYTHON_SPACE}]\p{M}*|_`,
  };
}
