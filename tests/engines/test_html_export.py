"""The model in a page computes what PyTorch computes, in a real browser; skipped where there is none."""

import itertools
import json
import random
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dragoman
from dragoman.commands import export as command
from dragoman.decoding.search import search
from dragoman.decoding.search_config import resolve_search
from dragoman.engines.html_export import HtmlModel, write_html
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.model.building import build_network, copy_weights
from dragoman.model_folder.folder import ModelFolder
from dragoman.reading.pairs import take_features
from dragoman.settings import DataSettings, DecodingSettings, Settings, SideSettings
from dragoman.tokenizers.pointers import Pointers
from dragoman.tokenizers.tokenizer import FIRST_TEXT_ID, PairTokenizer, Tokenizer
from exported import OPTIONS, draw_sources, make_model, name_option
from reporting.browser import NAMES, Browser, find_browser

PROGRAM = find_browser()
needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason=f"needs a browser: none of {', '.join(NAMES)} is on the path"
)
FOLDERS = Path(__file__).parents[1] / "folders" / "0.1"
TEXTS = [
    "Ελληνικά Größe naïve", "e\u0301a\u0308o\u0323\u0302", "한국어 각", "שלום עולם", "مرحبا بكم",
    "नमस्ते दुनिया", "日本語のテキスト", "👩‍👩‍👧‍👦 🇫🇷 👍🏽", "a\u00a0b\u3000c", "x  y   ", " \t ", "12٣४ 3/10",
    "\ufeffa \ufeff", "a\x85b\x1cc\u200b", "\u0000", "don't 'tis", "𝔘𝔫𝔦", "line\r\nline", "", " ", "aaaaaaa",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def make_settings(model, tokenizer, data=None, **decoding):
    return Settings.model_validate(
        {
            "data": data or {},
            "model": model,
            "decoding": decoding,
            "tokenizer": {"source": tokenizer.source.settings, "target": tokenizer.target.settings},
        }
    )


def write_page(path, model, tokenizer, network, data=None):
    features = ["V"] * len((data or {}).get("features", ()))
    folder = ModelFolder(
        settings=make_settings(model, tokenizer, data),
        tokenizer=tokenizer,
        weights=copy_weights(network),
        metrics={"samples": [{"source": "", "features": features, "reference": ""}]},
        card="",
    )
    write_html(folder, "0" * 64, "model", "float16", path)
    return path


def round_weights(network):
    """Give the network the weights that 16 bits hold, so that its scores are the page's."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half())


def expect(network, sources, config):
    return [search([network], torch.tensor([source]), config)[0] for source in sources]


def assert_alike(found, expected, tolerance=1e-4):
    for page, torch_ in zip(found, expected, strict=True):
        assert [(one.ids, one.is_complete) for one in page] == [
            (one.ids, one.is_complete) for one in torch_
        ]
        for one, other in zip(page, torch_, strict=True):
            assert one.score == pytest.approx(other.score, abs=tolerance)
            assert one.normalized_score == pytest.approx(other.normalized_score, abs=tolerance)


@needs_browser
@pytest.mark.parametrize("option", OPTIONS, ids=name_option)
def test_a_beam_and_given_targets_have_pytorchs_scores(option, browser, tmp_path):
    model, tokenizer, network = make_model(**option)
    round_weights(network)
    browser.open(write_page(tmp_path / "page.html", model, tokenizer, network))
    page, sources = HtmlModel(browser, "float16"), draw_sources(5, count=3)
    decoding = DecodingSettings(
        beam_size=3, num_hypotheses=3, max_length_ratio=0.2, max_length_extra=9
    )
    config = resolve_search(decoding, tokenizer)
    assert_alike(page.search(sources, config), expect(network, sources, config))
    targets = [(5, 6, 7), (), (8,) * 12]
    scored = network.score(
        torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, sources)), batch_first=True),
        torch.nn.utils.rnn.pad_sequence(
            [torch.tensor([1, *ids, 2]) for ids in targets], batch_first=True
        ),
    )
    for one, other in zip(page.score(sources, targets, config), scored, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)


DECODINGS = [
    {},
    {"beam_size": 5, "num_hypotheses": 2},
    {"beam_size": 4, "num_hypotheses": 4, "length_norm": "wu", "length_penalty": 0.6},
    {"beam_size": 3, "num_hypotheses": 2, "length_penalty": 0.0},
    {"beam_size": 4, "num_hypotheses": 3, "stop": "exact"},
    {"beam_size": 3, "min_length": 7, "max_length_extra": 9},
    {"min_length_ratio": 0.5},
    {"no_repeat_ngram": 1},
    {"beam_size": 3, "num_hypotheses": 3, "no_repeat_ngram": 2},
    {"forbidden_tokens": ["a", "b", "c", "d", "e", "f"]},
    {"beam_size": 30, "num_hypotheses": 30, "max_length_ratio": 0.0, "max_length_extra": 2},
    {"max_length_ratio": 0.0, "max_length_extra": 1},
    {"beam_size": 3, "max_length": 4},
]


@pytest.fixture(scope="module")
def decided(browser, tmp_path_factory):
    model, tokenizer, network = make_model(seed=3)
    round_weights(network)
    path = tmp_path_factory.mktemp("decided") / "page.html"
    return write_page(path, model, tokenizer, network), tokenizer, network


@needs_browser
@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_every_setting_of_the_search_does_what_it_does_in_pytorch(decoding, browser, decided):
    path, tokenizer, network = decided
    browser.open(path)
    limits = {"max_length_ratio": 0.1, "max_length_extra": 12, **decoding}
    config = resolve_search(DecodingSettings(**limits), tokenizer)
    sources = draw_sources(11, count=4)
    found = HtmlModel(browser, "float16").search(sources, config)
    assert_alike(found, expect(network, sources, config))


def draw_texts(seed, count=150):
    chance = random.Random(seed)
    alphabet = sorted(set("".join(TEXTS)))
    return ["".join(chance.choices(alphabet, k=chance.randint(1, 12))) for _ in range(count)]


@needs_browser
@pytest.mark.parametrize("form", ["none", "nfc", "nfd"])
@pytest.mark.parametrize("kind", ["characters", "symbols", "bpe"])
def test_any_text_has_the_ids_that_python_gives_and_comes_back(kind, form, browser, tmp_path):
    side = SideSettings(kind=kind, vocab_size=330, unicode_form=form, separator="é" if form == "nfd" else " ")  # fmt: skip
    one = Tokenizer.train(TEXTS * 3, side)
    tokenizer = PairTokenizer(source=one, target=one, features={})
    model = make_model()[0]
    browser.open(
        write_page(tmp_path / "page.html", model, tokenizer, build_network(model, tokenizer))
    )
    texts = [*TEXTS, *draw_texts(1)]
    found = browser.run(f"({json.dumps(texts)}).map(text => check.encode(text, []))")
    assert found == tokenizer.encode_sources(texts, [()] * len(texts))
    chance = random.Random(2)
    rows = [chance.choices(range(one.vocab_size), k=chance.randint(0, 9)) for _ in range(150)]
    rows += [ids[:-1] for ids in found]
    assert browser.run(f"({json.dumps(rows)}).map(check.decode)") == [
        *map(tokenizer.decode_target, rows)
    ]


@needs_browser
@pytest.mark.parametrize(
    ("words", "form", "unicode_form"),
    [(words, form, "none") for words in ("spaces", "punctuation", "all") for form in ("json", "|")]
    + [("all", "json", "nfc")],
)
def test_words_have_the_numbers_that_python_gives(words, form, unicode_form, browser, tmp_path):
    side = SideSettings(kind="bpe", vocab_size=330, unicode_form=unicode_form)
    one = Tokenizer.train(TEXTS * 3, side)
    pointers = Pointers(
        form=form, words=words, fields=("a",), structures=("", " | a: ", '{"a":"'), num_words=9
    )
    tokenizer = PairTokenizer(source=one, target=one, features={"a=V": 330}, pointers=pointers)
    model = make_model()[0]
    path = tmp_path / "page.html"
    browser.open(write_page(path, model, tokenizer, build_network(model, tokenizer)))
    texts = [
        *TEXTS,
        *draw_texts(1),
        "Ab cD-E F.",
        'a "b" \\ c',
        "ไปกรุงเทพฯ (दिल्ली), ①Ⅳ_x❤️",
        "ΟΔΟΣ ΑΣ İ ǅ",
        unicodedata.normalize("NFD", "Zoë in 한국"),
    ]
    found = browser.run(f"({json.dumps(texts)}).map(text => check.encode(text, []))")
    assert found == tokenizer.encode_sources(texts, [()] * len(texts))
    chance, ids = random.Random(2), range(331, tokenizer.source_vocab_size)
    rows = [([*chance.choices(ids, k=6), *chance.choices(range(40), k=2)], text) for text in texts]
    outputs = browser.run(f"({json.dumps(rows)}).map(([ids, text]) => check.decode(ids, text))")
    assert outputs == [tokenizer.read_target(*row) for row in rows]


@needs_browser
@pytest.mark.parametrize("separator", ["", ";"])
def test_features_and_leading_tags_have_the_ids_that_python_gives(separator, browser, tmp_path):
    model, tokenizer, _ = make_model()
    symbols = ["a=V", "a=PST", "b=V;PST", "b=\ufeff", "<de>", "<x=1>"]
    features = {symbol: 30 + i for i, symbol in enumerate(symbols)}
    tokenizer = replace(tokenizer, features=features)
    data = {"features": ["a", "b"], "features_separator": separator, "leading_tags": True}
    settings = DataSettings.model_validate(data)
    path = tmp_path / "page.html"
    browser.open(write_page(path, model, tokenizer, build_network(model, tokenizer), data))
    values = [["V", "V;PST"], ["V; PST ;", ""], [" V\x1c", "\ufeff"], ["new", "V"]]
    texts = ["abc", "<de> abc", "<de> <x=1> a", "<de>", "<de>\u00a0a", "<a b> c", " <de> a"]
    for value, text in itertools.product(values, texts):
        source, taken = take_features(text, value, settings.features, settings)
        [expected] = tokenizer.encode_sources([source], [taken])
        assert browser.run(f"check.encode({json.dumps(text)}, {json.dumps(value)})") == expected


@needs_browser
@pytest.mark.parametrize("name", ["features", "tied"])
def test_answers_are_those_of_predict(name, browser, tmp_path):
    folder = Path(shutil.copytree(FOLDERS / name, tmp_path / name))
    check = dragoman.export(folder, "html")
    assert check.equal_rows + check.tied_rows == check.rows
    browser.open(folder / "html" / f"{name}.html")
    samples = ModelFolder.read(folder).metrics["samples"][:8]
    sources, features = ([one[key] for one in samples] for key in ("source", "features"))
    request = {
        "source": sources, "features": features, "nbest": 3, "alignment": True,
        "decoding": {"beam_size": 4},
    }  # fmt: skip
    answer = browser.run(f"adapter.predict({json.dumps(request)})")
    words = {
        "decoding.beam_size": "4",
        "decoding.num_hypotheses": "3",
        "decoding.alignment": "true",
    }
    settings = dragoman.read_settings(
        None, [word for setting, value in words.items() for word in (f"--{setting}", value)]
    )
    model = dragoman.load(folder, settings, engine="torch")
    assert answer["digest"] == model.weights_sha256()[0]
    for found, expected in zip(
        answer["predictions"], model.predict_n_best(sources, features), strict=True
    ):
        best = expected[0]
        assert (found["output"], found["truncated"]) == (best.text, not best.is_complete)
        assert [one["output"] for one in found["nbest"]] == [one.text for one in expected]
        for one, other in zip(found["nbest"], expected, strict=True):
            assert one["score"] == pytest.approx(other.score, abs=0.02)
            assert one["confidence"] == pytest.approx(other.confidence, abs=0.02)
        alignment = found["alignment"]
        assert alignment["source_tokens"] == list(best.source_tokens)
        assert alignment["target_tokens"] == list(best.tokens)
        torch.testing.assert_close(
            torch.tensor(alignment["weights"]), torch.tensor(best.alignment), atol=0.02, rtol=0.0
        )


@needs_browser
def test_a_source_without_text_has_no_output(browser, tmp_path):
    model, tokenizer, network = make_model()
    data = {"leading_tags": True}
    path = write_page(tmp_path / "page.html", model, tokenizer, network, data)
    browser.open(path)
    request = {"source": ["<de> ", "abc", "<de>", "\x1c"]}
    answer = browser.run(f"adapter.predict({json.dumps(request)})")
    assert [one is None for one in answer["predictions"]] == [True, False, True, True]


@needs_browser
def test_a_request_that_cannot_be_answered_is_refused_with_its_place(browser, tmp_path):
    folder = Path(shutil.copytree(FOLDERS / "features", tmp_path / "features"))
    dragoman.export(folder, "html")
    browser.open(folder / "html" / "features.html")

    def refuse(**request):
        script = f"adapter.predict({json.dumps(request)}).catch(e => [e.where, e.message])"
        return browser.run(script)

    en = {"source": "one", "features": ["en"]}
    assert refuse(source="one") == ["features", "give 1 for each source: language"]
    assert refuse(**en, nbest=7, decoding={"beam_size": 2})[0] == "nbest"
    assert refuse(**en, decoding={"regex": "a+"})[0] == "decoding.regex"
    assert refuse(source=["one", "one " * 99], features=["en"])[0] == "source[1]"
    assert refuse(**en, decoding={"forbidden_tokens": ["x"]})[0] == "decoding.forbidden_tokens"
    assert refuse(source="\ud800", features=["en"])[0] == "source"
    assert refuse(source=["one", "\ud800"], features=["en"])[0] == "source[1]"
    assert refuse(source=["one"] * 2, features=[["en"], []])[0] == "features[1]"
    assert refuse(**en)["predictions"][0]["output"] == "1"


@needs_browser
@pytest.mark.parametrize("quantization", ["float16", "int8"])
def test_a_page_is_checked_before_it_is_kept(quantization, trained, tmp_path):
    folder = Path(shutil.copytree(trained[0], tmp_path / "model"))
    check = dragoman.export(folder, "html", quantization)
    assert check.rows == 64
    assert check.equal_rows == 64 if quantization == "float16" else check.equal_rows > 60
    assert {path.name for path in (folder / "html").iterdir()} == {"model.html", "export.json"}
    about = json.loads((folder / "html" / "export.json").read_text())
    assert (about["quantization"], about["check"]) == (quantization, check.to_dict())
    bytes_per_weight = 2 if quantization == "float16" else 1
    size, count = (folder / "html" / "model.html").stat().st_size, 115_000
    assert size < 4 / 3 * bytes_per_weight * count + 100_000


def test_a_page_without_a_browser_is_kept_and_said_to_be_unchecked(trained, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(trained[0], tmp_path / "model"))
    monkeypatch.setattr(command, "find_browser", lambda: None)
    assert "kept, but not checked: no Chromium" in dragoman.export(folder, "html")
    assert (folder / "html" / "model.html").is_file()
    monkeypatch.setattr(command, "find_browser", lambda: shutil.which("false"))
    assert "not checked: /" in dragoman.export(folder, "html")


def test_what_a_page_cannot_do_is_refused(trained, tmp_path):
    folder = Path(shutil.copytree(trained[0], tmp_path / "model"))
    with pytest.raises(SettingsError, match="--to html has float16 and int8 only"):
        dragoman.export(folder, "html", "float32")
    with pytest.raises(SettingsError, match="--to tflite: it does not exist; give ctranslate2"):
        dragoman.export(folder, "tflite")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("method: beam", "method: sampling"))
    with pytest.raises(ModelFolderError, match=r"decoding\.method is sampling"):
        dragoman.export(folder, "html")
    unigram = Tokenizer.train(TEXTS, SideSettings(kind="unigram", vocab_size=300))
    model = make_model()[0]
    tokenizer = PairTokenizer(source=unigram, target=unigram, features={})
    ModelFolder(
        settings=make_settings(model, tokenizer, regex="a+"),
        tokenizer=tokenizer,
        weights=copy_weights(build_network(model, tokenizer)),
        metrics={},
        card="",
    ).write(folder)
    with pytest.raises(ModelFolderError) as refused:
        dragoman.export(folder, "html")
    for reason in ("tokenizer.source.kind is unigram", "decoding.regex is set"):
        assert reason in str(refused.value)
    assert not (folder / "html").exists()


def test_a_weight_that_16_bits_cannot_hold_is_refused(tmp_path):
    model, tokenizer, network = make_model()
    network.output = None
    with torch.no_grad():
        network.target_embedding.weight[5, 5] = 1e5
    with pytest.raises(ModelFolderError, match=r"target_embedding.weight holds a number"):
        write_page(tmp_path / "page.html", model, tokenizer, network)


def test_first_text_id_is_the_one_that_the_page_knows():
    script = (Path(command.__file__).parents[1] / "engines" / "html_model.js").read_text()
    assert f"FIRST_TEXT = {FIRST_TEXT_ID};" in script
