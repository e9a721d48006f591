// The page: it asks `adapter`, which is the server (server.js) or the model itself (html_adapter.js).
//
// adapter.describe() and adapter.predict(request) answer as GET /v1/models and POST /v1/predict do.
// adapter.correct(correction), if there is one, says whether it was kept; else they are downloaded.
// adapter.isServer: it has constraints, and finds out where the model looked at some cost.

const adapter = window.adapter;
const ROWS_AT_ONCE = 16; // of a request; the progress moves with each
const MOST_SHOWN = 200; // outputs; a file of all can be downloaded

const get = (id) => document.getElementById(id);
const source = get("source"), nbest = get("nbest"), beam = get("beam"), results = get("results");
let models = [], model = null;
let answered = []; // [{source, features, line, prediction}], of the last inputs
let isLookOpen = !adapter.isServer; // whether "Where the model looked" is open, as the user left it
const corrections = []; // not yet downloaded
let run = 0; // the number of the newest prediction: an older one stops

/** Return a new element with properties and children; texts are never read as HTML. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ------------------------------------------------------------------ the model

function chooseModel() {
  model = models[get("model").selectedIndex];
  document.title = get("name").textContent = model.name;
  get("digest").textContent = `weights ${model.digest.slice(0, 12)}`;
  nbest.value = "1";
  chooseBeam();
  get("features").replaceChildren(
    ...model.features.map((label) => make("label", {}, `${label} `, make("input", { name: label, autocomplete: "off" }))),
  );
  if (model.examples.length && model.features.length) showFeatures(model.examples[0].features);
  get("examples-part").hidden = !model.examples.length;
  get("examples").replaceChildren(...model.examples.map((example) => make("li", {}, makeExample(example))));
}

/** Show the model's beam, or a larger one where more outputs are asked for. */
function chooseBeam() {
  beam.value = Math.max(model.decoding.beam_size ?? 1, Number(nbest.value));
}

function makeExample(example) {
  const text = make("bdi", {}, example.source);
  const button = make("button", { type: "button", title: `right: ${example.target}` }, ...makeFeatures(example), text);
  button.onclick = () => {
    source.value = example.source;
    showFeatures(example.features);
    predictTyped();
  };
  return button;
}

const makeFeatures = ({ features }) => features.map((value) => make("span", { className: "feature" }, value));
const listFeatures = () => [...get("features").querySelectorAll("input")];
const showFeatures = (values) => listFeatures().forEach((input, i) => (input.value = values[i]));

// ------------------------------------------------------------------ predicting

/** Return the request for some rows, as the form says. */
function makeRequest(rows) {
  const decoding = Number(beam.value) === model.decoding.beam_size ? {} : { beam_size: Number(beam.value) };
  const choices = splitLines(get("choices").value).filter((line) => line !== "");
  if (get("regex").value) decoding.regex = get("regex").value;
  if (choices.length) decoding.choices = choices;
  if (get("schema").value.trim()) decoding.json_schema = get("schema").value;
  const request = { model: model.name, source: rows.map((row) => row.source), decoding };
  if (model.features.length) request.features = rows.map((row) => row.features);
  if (nbest.value > 1) request.nbest = Number(nbest.value);
  return request;
}

/** Predict rows, some at a time, and give each to `show`; return whether all were predicted. */
async function predictRows(rows, show) {
  const own = ++run, progress = get("progress");
  answered = [];
  get("error").hidden = get("download").hidden = true;
  progress.max = rows.length;
  progress.hidden = get("stop").hidden = rows.length <= ROWS_AT_ONCE;
  for (let start = 0; start < rows.length; start += ROWS_AT_ONCE) {
    progress.value = start;
    say(rows.length > 1 ? `${start} of ${rows.length} lines` : "…");
    const some = rows.slice(start, start + ROWS_AT_ONCE), asked = some.filter((row) => row.source.trim());
    let predictions = [];
    try {
      if (asked.length) ({ predictions } = await adapter.predict(makeRequest(asked)));
    } catch (error) {
      if (own === run) {
        finish("");
        const place = error.where?.match(/^(?:source|features)\[(\d+)\]$/);
        showError(error, place && rows.length > 1 ? `line ${asked[place[1]].line}` : error.where);
      }
      return false;
    }
    if (own !== run) return false;
    for (const row of some) {
      answered.push({ ...row, prediction: asked.includes(row) ? predictions.shift() : null });
      show(answered.at(-1));
    }
  }
  const heard = answered.map(({ prediction }) => `Output: ${prediction?.output ?? "nothing"}`); // by a screen reader
  finish(rows.length > 1 ? `${rows.length} lines predicted.` : make("span", { className: "aloud" }, ...heard));
  return true;
}

function finish(message) {
  get("progress").hidden = get("stop").hidden = true;
  get("download").hidden = answered.length < 2;
  say(message);
}

function showError(error, where) {
  get("error").textContent = (where ? `${where}: ` : "") + error.message;
  get("error").hidden = false;
}

function predictTyped() {
  if (!get("form").reportValidity()) return;
  const rows = splitLines(source.value)
    .map((text, i) => ({ source: text, features: listFeatures().map((input) => input.value), line: i + 1 }))
    .filter((row) => row.source.trim());
  results.replaceChildren();
  get("error").hidden = true;
  predictRows(rows, (row) => {
    if (answered.length <= MOST_SHOWN) results.append(showRow(row, rows.length === 1));
    else if (answered.length === MOST_SHOWN + 1) results.append(make("p", { className: "note" }, `The first ${MOST_SHOWN} are shown.`));
  });
  if (!rows.length) say("Type an input first.");
}

/** Predict each line of a file, and give a file back. With features, they follow the source after tabs. */
async function predictFile(file) {
  results.replaceChildren();
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    showError(new Error("it is not UTF-8 text"), file.name);
    return;
  }
  const rows = splitLines(text.replace(/\r?\n$/, "")).map((line, i) => {
    const [first, ...others] = model.features.length ? line.split("\t") : [line];
    const typed = listFeatures().map((input) => input.value);
    return { source: first, features: others.length ? others : typed, line: i + 1 };
  });
  if (await predictRows(rows, () => {})) downloadOutputs(file.name);
}

const splitLines = (text) => text.split(/\r?\n/);

function downloadOutputs(name = "outputs.txt") {
  const header = ["source", ...model.features, "output", "confidence"];
  const rows = answered.map(({ source, features, prediction }) =>
    [source, ...features, prediction?.output ?? "", prediction?.confidence ?? ""]);
  download(`${name.replace(/\.[^.]*$/, "")}.outputs.tsv`, [header, ...rows]);
}

/** Give the user a file of tab-separated values; a value with a tab or a quote is quoted. */
function download(name, rows) {
  const quote = (value) => (/["\t\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  const text = rows.map((row) => `${row.map(quote).join("\t")}\n`).join("");
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/tab-separated-values" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const say = (message) => get("status").replaceChildren(message);

// ------------------------------------------------------------------ results

function showRow(row, isOnly) {
  const { prediction } = row;
  if (!prediction) // a source of tags only
    return make("article", {}, make("p", { className: "source", dir: "auto" }, row.source), make("p", { className: "output" }, make("i", {}, "nothing")));
  const card = make("article", {},
    make("p", { className: "source", dir: "auto" }, ...makeFeatures(row), ...markSpans(row)),
    make("p", { className: "output", dir: "auto", lang: "" }, prediction.output || make("i", {}, "nothing")),
  );
  const isRemembered = prediction.from === "memory"; // the model looked nowhere
  if (isRemembered) card.append(make("p", { className: "note" }, `From the training pairs, ${prediction.row}`));
  if (prediction.truncated) card.append(make("p", { className: "warning" }, "▲ Truncated: it has the longest length."));
  const absent = (prediction.spans ?? []).filter((span) => span.start === null).map((span) => span.field);
  if (absent.length) card.append(make("p", { className: "note" }, `Not in the input: ${absent.join(", ")}`));
  if (prediction.num_left_out) card.append(make("p", { className: "warning" }, `▲ Values left out, which are not in the input: ${prediction.num_left_out}`));
  if (prediction.nbest) card.append(make("ol", { className: "nbest" }, ...prediction.nbest.map((one) =>
    make("li", {}, make("span", { dir: "auto", className: "text" }, one.output), showConfidence(one)))));
  else card.append(showConfidence(prediction));
  card.append(...(isRemembered ? [] : [showLook(row, isOnly)]), showActions(row));
  return card;
}

/** Return the source of a row in parts; the values of a record are marked, and name their fields. */
function markSpans({ source, prediction }) {
  const characters = [...source]; // of Unicode, as spans count; prediction.source lacks the tags before it
  const skipped = prediction.source === undefined ? 0 : characters.length - [...prediction.source].length;
  const spans = (prediction.spans ?? []).filter((span) => span.start !== null)
    .map(({ field, kind, start, end }) => ({ field, kind, start: start + skipped, end: end + skipped }));
  const ends = [0, ...spans.flatMap(({ start, end }) => [start, end]), characters.length].sort((one, other) => one - other);
  return ends.slice(1).map((end, i) => {
    const text = characters.slice(ends[i], end).join("");
    const fields = spans.filter((span) => span.start <= ends[i] && ends[i] < span.end)
      .map(({ field, kind }) => (kind === "near" ? `${field} (nearly)` : field));
    return fields.length && text ? make("mark", { title: fields.join(", ") }, text) : text;
  });
}

function showConfidence({ confidence }) {
  if (confidence === null) return make("span", { className: "note" }, "no confidence");
  const bar = make("span", { className: "bar", ariaHidden: "true" });
  bar.style.setProperty("--share", confidence);
  const percent = confidence > 0 && confidence < 0.001 ? "under 0.1" : Math.floor(1000 * confidence) / 10;
  return make("span", { className: "confidence", title: "confidence" }, bar, make("span", { className: "aloud" }, "confidence "), `${percent}%`);
}

/** Return a part that, once it is open, asks where the model looked. */
function showLook(row, isOnly) {
  const content = make("div"), look = make("details", {}, make("summary", {}, "Where the model looked"), content);
  look.ontoggle = async () => {
    if (isOnly) isLookOpen = look.open;
    if (!look.open || content.hasChildNodes()) return;
    content.append("…");
    try {
      const { predictions } = await adapter.predict({ ...makeRequest([row]), alignment: true });
      content.replaceChildren(...showAlignment(predictions[0].alignment));
    } catch (error) {
      content.replaceChildren(error.message);
    }
  };
  look.open = isOnly && isLookOpen;
  return look;
}

/** Show the tokens of both sides; an output token marks how much the model looked at each source token. */
function showAlignment({ source_tokens: seen, target_tokens: emitted, weights }) {
  const sources = seen.map((token) => make("span", { className: "token" }, showToken(token)));
  const buttons = emitted.map((token, i) => {
    const order = [...weights[i].keys()].sort((one, other) => weights[i][other] - weights[i][one]);
    const told = order.slice(0, 3).map((j) => `${showToken(seen[j])} ${Math.round(100 * weights[i][j])}%`).join(", ");
    const button = make("button", { type: "button", className: "token", ariaLabel: `${showToken(token)}: looked at ${told}` }, showToken(token));
    button.onfocus = button.onpointerenter = () => {
      buttons.forEach((one) => one.classList.toggle("chosen", one === button));
      sources.forEach((one, j) => one.style.setProperty("--share", weights[i][j]));
    };
    return button;
  });
  return [
    make("p", { className: "note" }, "For each token of the output, pointed at or touched:"),
    make("div", { className: "tokens", dir: "auto", role: "group", ariaLabel: "Output tokens" }, ...buttons),
    make("p", { className: "note" }, "how much the model looked at each token of the input:"),
    make("div", { className: "tokens seen", dir: "auto", ariaHidden: "true" }, ...sources),
  ];
}

const showToken = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

function showActions(row) {
  const typed = make("input", { name: "target", value: row.prediction.output, dir: "auto", ariaLabel: "The right output" });
  const told = make("span", { role: "status" });
  const form = make("form", { hidden: true, className: "fields" }, make("label", {}, "It should be ", typed), make("button", {}, "Keep"), told);
  form.onsubmit = async (event) => {
    event.preventDefault();
    try {
      await keepCorrection({ model: model.name, source: row.source, features: row.features, target: typed.value });
      told.textContent = "Kept, thank you.";
    } catch (error) {
      told.textContent = error.message;
    }
  };
  const wrong = make("button", { type: "button", ariaExpanded: "false" }, "This is wrong …");
  wrong.onclick = () => {
    form.hidden = !form.hidden;
    wrong.ariaExpanded = String(!form.hidden);
    if (!form.hidden) typed.focus();
  };
  const copy = make("button", { type: "button" }, "Copy");
  copy.onclick = () => navigator.clipboard.writeText(row.prediction.output)
    .then(() => "Copied", () => "The browser forbids it")
    .then((text) => (copy.textContent = text));
  return make("div", { className: "actions" }, ...(navigator.clipboard ? [copy] : []), wrong, form);
}

async function keepCorrection(correction) {
  if (await adapter.correct?.(correction)) return;
  corrections.push(correction);
  showCorrections();
}

function showCorrections() {
  const button = get("corrections"), count = corrections.length;
  button.hidden = !count;
  button.textContent = `Download ${count} correction${count === 1 ? "" : "s"} (TSV)`;
}

// ------------------------------------------------------------------ what the user does

get("form").onsubmit = (event) => {
  event.preventDefault();
  predictTyped();
};
source.onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) predictTyped();
};
get("model").onchange = chooseModel;
nbest.onchange = chooseBeam;
get("open").onclick = () => get("file").click();
get("file").onchange = ({ target }) => {
  if (target.files.length) predictFile(target.files[0]);
  target.value = ""; // the same file can be opened again
};
get("stop").onclick = () => {
  run++;
  finish(`Stopped after ${answered.length} lines.`);
};
get("download").onclick = () => downloadOutputs();
get("corrections").onclick = () => {
  const rows = corrections.splice(0).map((one) => [one.source, ...one.features, one.target]);
  download(`${model.name}.corrections.tsv`, [["source", ...model.features, "target"], ...rows]);
  showCorrections();
};
window.onbeforeunload = (event) => {
  if (corrections.length) event.preventDefault(); // the browser asks whether to leave
};
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  const [file] = event.dataTransfer.files;
  if (!file) return; // text that is dropped is typed
  event.preventDefault();
  predictFile(file);
};

try {
  ({ models } = await adapter.describe());
  get("model").append(...models.map((one) => make("option", {}, one.name)));
  get("model-label").hidden = models.length < 2;
  get("constraints").hidden = !adapter.isServer;
  chooseModel();
} catch (error) {
  showError(error);
}
