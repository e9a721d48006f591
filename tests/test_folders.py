"""Model folders of earlier formats give the same outputs as then: see folders/README.md."""

import json
import shutil
from pathlib import Path

import pytest

import dragoman
from dragoman.cli import main
from dragoman.commands.evaluate import find_run
from dragoman.configuration import FORMAT
from dragoman.model_folder.folder import CONFIG, ModelFolder
from dragoman.settings import DecodingSettings, Settings
from dragoman.tokenizers.tokenizer import Tokenizer

FORMATS = sorted(path for path in Path(__file__).with_name("folders").iterdir() if path.is_dir())
FOLDERS = [path for of_format in FORMATS for path in sorted(of_format.iterdir()) if path.is_dir()]
ENGINES = [(folder, engine) for folder in FOLDERS for engine in ("torch", "ctranslate2")]
each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}-{f.name}")
each_engine = pytest.mark.parametrize(
    ("folder", "engine"), ENGINES, ids=[f"{f.parent.name}-{f.name}-{e}" for f, e in ENGINES]
)


def read_answers(folder):
    return json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))


def load(folder, engine, **decoding):
    return dragoman.load(
        folder, Settings(decoding=DecodingSettings(**decoding)), engine=engine, device="cpu"
    )


def columns(answers):
    """The sources, and their features if they have any."""
    features = [answer["features"][0] for answer in answers if answer["features"]]
    return [answer["source"] for answer in answers], features or None


def test_a_folder_of_the_present_format_is_kept():
    assert any(
        (folder / CONFIG).read_text().startswith(f"format: {FORMAT}\n") for folder in FOLDERS
    )


@each_folder
def test_a_folder_that_is_kept_is_of_a_trained_model(folder):
    answers = read_answers(folder)
    right = sum(answer["text"] == answer["number"] for answer in answers)
    assert right >= 0.9 * len(answers) >= 18


@each_engine
def test_a_kept_folder_gives_its_tokens_and_their_scores(folder, engine):
    answers = read_answers(folder)
    model = load(folder, engine, beam_size=1, token_scores=True)
    assert model.engine.name == engine
    for answer, [best] in zip(answers, model.predict_n_best(*columns(answers)), strict=True):
        assert best.text == answer["text"]
        assert list(best.tokens) == answer["tokens"]
        assert list(best.source_tokens) == answer["source_tokens"]
        assert best.log_probs == pytest.approx(answer["log_probs"], abs=1e-3)
        assert best.score == pytest.approx(sum(answer["log_probs"]), abs=1e-3)
        assert best.confidence == pytest.approx(answer["confidence"], abs=1e-3)


@each_engine
def test_a_kept_folder_gives_the_probability_of_an_output(folder, engine):
    answers = read_answers(folder)
    sources, features = columns(answers)
    given = load(folder, engine, beam_size=1).score(sources, ["1000"] * len(sources), features)
    assert [one.score for one in given] == pytest.approx(
        [answer["score_of_1000"] for answer in answers], abs=1e-3
    )


@pytest.mark.parametrize("engine", ["torch", "auto"])
@each_folder
def test_a_kept_folder_gives_its_n_best_lists(folder, engine):
    answers = read_answers(folder)
    model = load(folder, engine, beam_size=4, num_hypotheses=4)
    for answer, best_first in zip(answers, model.predict_n_best(*columns(answers)), strict=True):
        assert [one.text for one in best_first] == [text for text, _ in answer["beam"]]
        scores = [score for _, score in answer["beam"]]
        assert [one.score for one in best_first] == pytest.approx(scores, abs=1e-3)


@each_folder
def test_every_file_of_a_kept_folder_is_read(folder):
    model_folder = ModelFolder.read(folder)
    assert model_folder.card.startswith(f"# {folder.name}\n")
    assert model_folder.metrics["data"]["pairs"]["train"] == 1945
    assert model_folder.calibration is not None
    assert model_folder.calibration.rows == 35
    assert len(model_folder.source_counts) == model_folder.tokenizer.source_vocab_size
    rows, content = find_run(folder)
    assert len(rows) == 35
    assert content["scores"] == model_folder.metrics["valid"]
    assert dragoman.load(folder).describe_calibration() == ""


@pytest.mark.usefixtures("no_shape_checks")
@each_folder
def test_a_kept_folder_is_exported(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / folder.name)
    assert dragoman.export(copy).is_equal
    assert dragoman.export(copy, "onnx").is_equal


@each_folder
def test_a_kept_folder_can_be_evaluated_and_reported(folder, tmp_path):
    copy, answers = shutil.copytree(folder, tmp_path / folder.name), read_answers(folder)
    sources, features = columns(answers)
    names = ["source", "target", *(["language"] if features else [])]
    tags = features or [[]] * len(sources)
    numbers = [answer["number"] for answer in answers]
    rows = [names, *([*row, *tag] for *row, tag in zip(sources, numbers, tags, strict=True))]
    pairs, report = tmp_path / "numbers.csv", tmp_path / "report.html"
    pairs.write_text("".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["evaluate", str(copy), str(pairs), "--report", str(report)]) == 0
    assert "numbers" in report.read_text(encoding="utf-8")
    assert [row.hypothesis for row in find_run(copy, "numbers")[0]] == [a["text"] for a in answers]


@pytest.mark.parametrize("of_format", FORMATS, ids=lambda path: path.name)
def test_kept_tokenizers_of_every_kind_give_the_same_ids(of_format):
    kept = json.loads((of_format / "tokenizers.json").read_text(encoding="utf-8"))
    kinds = {one["side"]["settings"]["kind"] for one in kept["tokenizers"]}
    assert kinds == {"bpe", "unigram", "characters", "symbols", "regex"}
    for one in kept["tokenizers"]:
        side = Tokenizer.from_dict(one["side"])
        assert side.encode_batch(kept["texts"]) == one["ids"]
        assert [side.decode(ids) for ids in one["ids"]] == one["read"]
