"""`fit --seeds`: models that differ by their seed, in one folder that predicts as their ensemble."""

import json
import pickle
import shutil

import pytest
from safetensors.numpy import load_file

import dragoman
from conftest import quiet_console, write_pairs
from dragoman.cli import main
from dragoman.commands.evaluate import find_run
from dragoman.commands.export import export
from dragoman.commands.fit import fit
from dragoman.errors import CheckpointError, ModelFolderError, SettingsError
from dragoman.model_folder.folder import CALIBRATION, METRICS, REPORT, SEEDS, SeedIndex
from dragoman.predictor import Predictor
from processes import start_until
from runs import WORDS, settings

MODELS = ("seed-1", "seed-2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds, trained without interruption, and their pairs."""
    folder = tmp_path_factory.mktemp("seeds")
    pairs = write_pairs(folder / "pairs.tsv", 300)
    test = folder / "test.tsv"
    test.write_text("".join(pairs.read_text().splitlines(keepends=True)[:40]))
    typed = settings("--evaluation.report", "html")
    fit(pairs, folder / "model", typed, seeds=2, console=quiet_console())
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(folder / "model", tmp_path / "model")
    shutil.copytree(folder / "model.training", tmp_path / "model.training")
    return tmp_path / "model"


def weights_of(model):
    return {name: array.tolist() for name, array in load_file(model / "model.safetensors").items()}


def test_the_seeds_have_one_tokenizer_and_other_weights(folder):
    first, second = (folder / "model" / name for name in MODELS)
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
    assert weights_of(first) != weights_of(second)
    assert SeedIndex.read(folder / "model").seeds == (1, 2)


def test_each_seed_is_the_model_that_a_run_of_its_own_gives(folder, tmp_path):
    typed = settings("--training.seed", "2")
    fit(folder / "pairs.tsv", tmp_path / "model", typed, console=quiet_console())
    assert weights_of(tmp_path / "model") == weights_of(folder / "model" / "seed-2")


def test_a_set_that_was_killed_in_its_second_seed_resumes_to_the_same_bits(folder, tmp_path):
    pairs, out = tmp_path / "pairs.tsv", tmp_path / "model"
    shutil.copy(folder / "pairs.tsv", pairs)
    words = ["fit", pairs, "--seeds", "2", "--out", out, *WORDS]
    process = start_until("step-6.ckpt", words, count=2)
    process.kill()
    process.communicate()
    with pytest.raises(ModelFolderError, match=r"finish its training with `dragoman fit --out \S+"):
        Predictor.load(out)
    pairs.unlink()
    console = quiet_console()
    fit((), out, resume="must", console=console)
    shown = console.file.getvalue()
    assert f"already complete: {out}.training/seed-1" in shown
    assert "resumed after step 5" in shown
    for name in MODELS:
        assert weights_of(out / name) == weights_of(folder / "model" / name)
    read = [json.loads((one / "model" / METRICS).read_text()) for one in (tmp_path, folder)]
    assert read[0]["valid"] == read[1]["valid"]
    assert read[0]["seeds"] == read[1]["seeds"]


def test_a_complete_set_is_left_alone_and_other_seeds_are_refused(copied):
    before = (copied / METRICS).stat().st_ino
    console = quiet_console()
    fit((), copied, resume="auto", seeds=2, console=console)
    assert (copied / METRICS).stat().st_ino == before
    assert f"already complete: {copied}\n" in console.file.getvalue()
    with pytest.raises(SettingsError, match="started with 2 seeds, from 1 on"):
        fit((), copied, resume="auto", seeds=3, console=console)
    with pytest.raises(ModelFolderError, match="already there"):
        fit("pairs.tsv", copied, seeds=2, console=console)
    with pytest.raises(SettingsError, match="--seeds 1: give 2 or more"):
        fit("pairs.tsv", copied, seeds=1, console=console, overwrite=True)
    shutil.rmtree(copied.with_name("model.training"))
    with pytest.raises(CheckpointError, match=r"no usable checkpoint|no run"):
        fit((), copied, resume="must", console=console)


def test_the_folder_predicts_as_the_ensemble_of_its_models(folder):
    model = dragoman.load(folder / "model")
    index = SeedIndex.read(folder / "model")
    decoding = {f"decoding.{name}": value for name, value in index.decoding.items()}
    other = dragoman.load([folder / "model" / name for name in MODELS], decoding)
    words, targets = ["abc", "gfed", "hhaabb"], ["ABC", "GF", "HAB"]
    assert [one.score for one in model.score(words, targets)] == [
        one.score for one in other.score(words, targets)
    ]
    assert model.predict(words) == other.predict(words)
    assert model.weights_sha256() == other.weights_sha256()
    assert pickle.loads(pickle.dumps(model)).predict(words) == model.predict(words)


def test_the_confidence_of_the_ensemble_is_calibrated(folder):
    model = dragoman.load(folder / "model")
    assert model.describe_calibration() == ""
    stored = json.loads((folder / "model" / CALIBRATION).read_text())
    assert model.temperature == stored["temperature"]
    apart = dragoman.load([folder / "model" / name for name in MODELS])
    assert "for each model" in apart.describe_calibration()


def test_what_takes_one_model_names_a_seed(folder, copied):
    with pytest.raises(ModelFolderError, match="seed-1"):
        export(copied, "html")
    with pytest.raises(SettingsError, match="an ensemble is not supported"):
        dragoman.load(copied, engine="ctranslate2")
    shutil.rmtree(copied / "seed-2")
    with pytest.raises(ModelFolderError, match=r"seed-2 missing; resume .* --out"):
        dragoman.load(copied)


@pytest.mark.parametrize(
    "index",
    [
        '{"version": 2, "seeds": [1]}',
        '{"seeds": ["../1"]}',
        '{"seeds": [1], "decoding": {"regex": 1}}',
    ],
)
def test_an_index_of_a_stranger_is_checked(tmp_path, index):
    (tmp_path / SEEDS).write_text(index)
    with pytest.raises(ModelFolderError, match=r"seeds\.json: "):
        dragoman.load(tmp_path)


def test_an_evaluation_shows_each_seed_their_mean_and_the_ensemble(folder, copied, capsys):
    test = folder / "test.tsv"
    found = dragoman.evaluate(copied, test, into_model=True)
    assert found.folder == copied / "evaluation" / "test"
    for name, one in found.seeds["scores"].items():
        alone = [find_run(copied / seed)[1]["scores"][name] for seed in MODELS]
        assert one["by_model"] == pytest.approx(alone)
        assert one["mean"] == pytest.approx(sum(alone) / 2)
    rows = [find_run(copied / seed)[0] for seed in MODELS]
    differ = [a.hypothesis != b.hypothesis for a, b in zip(*rows, strict=True)]
    assert found.seeds["disagreements"] == sum(differ) > 0
    first = found.seeds["most_disagreed"][0]
    assert differ[first["row"]]
    assert {*first["outputs"]} == {one[first["row"]].hypothesis for one in rows}
    assert main(["evaluate", str(copied), str(test)]) == 0
    shown = capsys.readouterr()
    assert f"written: {found.folder}\n" in shown.err
    assert "the 2 models of the ensemble, each alone" in shown.out
    assert f"their outputs differ on {sum(differ)} of {len(differ)} rows" in shown.out


def test_each_seed_is_evaluated_with_the_settings_of_a_loaded_ensemble(folder):
    typed = {"decoding.max_length": 2, "evaluation.resamples": 100}
    named = dragoman.evaluate(folder / "model", folder / "test.tsv", typed)
    loaded = dragoman.load(folder / "model", typed)
    assert dragoman.evaluate(loaded, folder / "test.tsv").seeds == named.seeds
    shorter = loaded.with_decoding(dragoman.read_settings(None, ["--decoding.max_length", "1"]))
    assert dragoman.evaluate(shorter, folder / "test.tsv").seeds != named.seeds


def test_a_comparison_takes_the_models_of_a_folder_as_runs_of_one_system(copied):
    apart = copied.with_name("apart")
    shutil.copytree(copied, apart)
    for name in MODELS:  # the same evaluation of fit, by each model
        assert find_run(copied / name, "valid")[0]
    [found] = dragoman.compare([copied, apart], on="valid")
    assert (found.baseline_runs, found.other_runs) == (2, 2)
    assert all(one.difference == 0 for one in found.differences.values())


def test_the_report_begins_with_the_rows_on_which_the_seeds_differ(folder):
    page = (folder / "model" / REPORT).read_text()
    lists = page[page.index('id="samples"') :]
    assert lists.index("The seeds disagree") < lists.index("Typical rows")
