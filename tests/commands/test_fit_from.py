"""Claims about runs that start from a trained model: what is kept, what is new, what is refused."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import dragoman
from conftest import quiet_console
from dragoman.cli import main
from dragoman.commands.fit import fit
from dragoman.configuration import flatten_settings
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.model.building import build_network, copy_weights, load_network, start_network
from dragoman.model.loss import sum_losses
from dragoman.model_folder.folder import ModelFolder
from dragoman.presets import choose_settings
from dragoman.reading.pairs import Pair
from dragoman.reading.statistics import collect_statistics
from dragoman.serving.app import Corrections
from dragoman.serving.messages import CorrectionRequest
from dragoman.settings import ModelSettings, Settings, SideSettings, TokenizerSettings
from dragoman.tokenizers.tokenizer import FIRST_TEXT_ID, PairTokenizer
from dragoman.training.datamodule import PairDataModule
from runs import results_of
from runs import settings as brief

FEATURES = Path(__file__).parents[1] / "folders" / "0.1" / "features"
KINDS = {
    "characters": SideSettings(kind="characters"),
    "regex": SideSettings(kind="regex", pattern=r"\w|\W"),
    "bpe": SideSettings(vocab_size=280),
}
OLD = [Pair("abc ba", "ABC", ("lang=en", "V"), 1, ""), Pair("cab", "B a", ("lang=de",), 2, "")]
NEW = [Pair("ŋbc", "AŊc", ("lang=is", "V"), 1, ""), Pair("lang=de", "É", ("lang=en",), 2, "")]
BRIEF = {"training.max_steps": 2, "evaluation.report": "none", "training.loggers": "none"}


def make_model(kind, pairs=OLD, *, is_shared=False, is_tied=False):
    side = KINDS[kind]
    tokens = TokenizerSettings(source=side, target=side, shared=is_shared)
    model = ModelSettings(d_model=16, nhead=2, dim_feedforward=24, tie_embeddings=is_tied)
    tokenizer = PairTokenizer.train(iter(pairs), tokens)
    return ModelFolder(
        settings=Settings(tokenizer=tokens, model=model),
        tokenizer=tokenizer,
        weights=copy_weights(build_network(model, tokenizer)),
        metrics={},
        card="",
    )


def build(tokenizer, old):
    network = build_network(old.settings.model, tokenizer).eval()
    start_network(network, tokenizer, old)
    return network


def logits_of(network, tokenizer):
    found = []
    for pair in OLD:
        source = torch.tensor(tokenizer.encode_sources([pair.source], [pair.features]))
        target = torch.tensor(tokenizer.encode_targets([pair.target]))
        found.append(network(source, target))
    return found


@pytest.mark.parametrize(("is_shared", "is_tied"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_old_symbols_keep_their_rows_and_logits(kind, is_shared, is_tied):
    old = make_model(kind, is_shared=is_shared, is_tied=is_tied)
    before = build(old.tokenizer, old)
    tokenizer = PairTokenizer.train(iter(NEW), old.settings.tokenizer, old.tokenizer)
    after = build(tokenizer, old)
    for side in ("source", "target"):
        now, then = getattr(tokenizer, side), getattr(old.tokenizer, side)
        assert now.tokens(range(then.vocab_size)) == then.tokens(range(then.vocab_size))
        assert (now.vocab_size > then.vocab_size) == (kind != "bpe")
    assert list(tokenizer.features) == ["V", "lang=de", "lang=en", "lang=is"]
    num_kept = old.tokenizer.target.vocab_size
    for then, now in zip(
        logits_of(before, old.tokenizer), logits_of(after, tokenizer), strict=True
    ):
        torch.testing.assert_close(now[..., :num_kept], then[..., :num_kept])


def test_new_symbols_start_at_the_mean_of_the_old_ones():
    old = make_model("characters", is_shared=True, is_tied=True)
    rows = torch.from_numpy(old.weights["target_embedding.weight"])
    tokenizer = PairTokenizer.train(iter(NEW), old.settings.tokenizer, old.tokenizer)
    weight = build(tokenizer, old).source_embedding.weight
    first, num_texts = old.tokenizer.features["V"], tokenizer.source.vocab_size
    [ids] = tokenizer.source.encode_batch(["Ŋ"])
    assert first <= ids[0] < num_texts
    torch.testing.assert_close(weight[ids[0]], rows[FIRST_TEXT_ID:first].mean(0))
    new_feature = weight[tokenizer.features["lang=is"]]
    torch.testing.assert_close(new_feature, rows[first : first + 3].mean(0))


def test_the_loss_before_the_first_step_is_that_of_the_model(trained, tmp_path):
    folder = ModelFolder.read(trained[0])
    module = PairDataModule(
        trained[0].parent / "pairs.tsv", {"training.start_from": trained[0]}, tmp_path
    )
    module.prepare_data()
    assert module.tokenizer.to_dict() == folder.tokenizer.to_dict()
    assert module.num_rows == folder.metrics["data"]["pairs"]  # the same pairs are held out
    network = build(module.tokenizer, folder)
    found = load_network(folder.settings.model, folder.tokenizer, folder.weights)
    batch = next(iter(module.val_dataloader()))
    sums = [sum_losses(one.eval(), batch.source_ids, batch.target_ids) for one in (network, found)]
    assert sums[0].loss == sums[1].loss


def test_corrections_of_the_server_are_trained_on_as_they_are(tmp_path):
    model, path = dragoman.load(FEATURES), tmp_path / "corrections.tsv"
    corrections = Corrections(path, [model])
    for i in range(60):
        asked = CorrectionRequest(
            source=f"ŋ{i}", features=["en" if i % 2 else "is"], target=f"{i}x"
        )
        corrections.add(asked, model)
    console, out = quiet_console(), tmp_path / "better"
    start = shutil.copytree(FEATURES, tmp_path / "start")
    options = {**BRIEF, "training.start_from": start, "training.checkpoint_every": 1}
    fit(path, out, {**options, "data.valid_fraction": 0.1}, console=console)
    said = re.sub(r"\s+", " ", console.file.getvalue())
    assert "new symbols: 1 target (x); new features: language=is" in said
    assert "was trained on may now be valid pairs" in said
    assert "--data.valid_fraction 0.02, as it had" in said
    folder = ModelFolder.read(out)
    assert folder.settings.training.start_from == str(start)
    assert str(start / "model.safetensors") in folder.metrics["data"]["sha256"]
    trained = flatten_settings(ModelFolder.read(start).settings)
    for name, value in flatten_settings(folder.settings).items():
        if name.startswith(("model.", "tokenizer.")):
            assert value == trained.get(name, value)


@pytest.mark.parametrize("columns", [[], ["--data.features", "language"], ["--data.features", "3"]])
def test_features_of_the_model_are_found_in_other_columns(columns, tmp_path, capsys):
    pairs, out = tmp_path / "pairs.tsv", tmp_path / "better"
    pairs.write_text("".join(f"{i:b}\t{i}\t{'en' if i % 2 else 'de'}\n" for i in range(60)))
    given = [part for name, value in BRIEF.items() for part in (f"--{name}", str(value))]
    words = ["fit", str(pairs), "--out", str(out), "--from", str(FEATURES), *columns, *given]
    assert main(words) == 0
    assert "new features: none" in re.sub(r"\s+", " ", capsys.readouterr().err)
    model = dragoman.load(out)
    assert model.settings.data.features == model.feature_labels == ("language",)
    assert not model.find_unknown(model.make_row("1", ["de"]).features)
    assert main([*words, "--resume"]) == 0
    assert "already complete" in capsys.readouterr().err


def test_a_resumed_run_equals_an_uninterrupted_one_without_the_model(trained, tmp_path):
    start = shutil.copytree(trained[0], tmp_path / "start")
    settings = brief("--training.start_from", str(start))
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"a{i:b}\tA{i:b}\n" for i in range(200)))
    fit(pairs, tmp_path / "whole", settings, console=quiet_console())
    shutil.copytree(tmp_path / "whole.training", tmp_path / "model.training")
    checkpoints = tmp_path / "model.training" / "checkpoints"
    kept = sorted(checkpoints.glob("step-*.ckpt"))[0]
    assert kept.name != "step-14.ckpt"
    for path in checkpoints.glob("step-*.ckpt"):
        if path != kept:
            path.unlink()
    shutil.rmtree(start)
    fit((), tmp_path / "model", resume="must", console=quiet_console())
    assert results_of(tmp_path / "model")[0] == results_of(tmp_path / "whole")[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.d_model", 32),
        ("model.positions", "rotary"),
        ("tokenizer.source.kind", "characters"),
        ("tokenizer.target.unicode_form", "nfd"),
        ("tokenizer.shared", True),
    ],
)
def test_settings_that_the_model_does_not_have_are_refused(tmp_path, name, value):
    settings = {**BRIEF, "training.start_from": FEATURES, name: value}
    with pytest.raises(SettingsError, match=rf"--{name}: {value!r}, but the model .* leave it out"):
        fit(tmp_path / "pairs.tsv", tmp_path / "out", settings, console=quiet_console())


def test_what_is_no_model_folder_is_refused(tmp_path):
    for start, found in [(tmp_path / "none", "found nothing"), (tmp_path, "not a complete model")]:
        settings = {**BRIEF, "training.start_from": start}
        with pytest.raises(ModelFolderError, match=found):
            fit(tmp_path / "pairs.tsv", tmp_path / "out", settings, console=quiet_console())


def test_a_started_run_has_fewer_steps_and_a_lower_rate():
    statistics = collect_statistics(OLD * 50)
    fresh = choose_settings(Settings(), statistics).settings
    started = Settings.model_validate({"training": {"start_from": "g2p"}})
    found = choose_settings(started, statistics).settings
    assert found.training.max_steps == fresh.training.max_steps // 4
    assert found.optimization.learning_rate < 0.5 * fresh.optimization.learning_rate
    assert found.optimization.warmup_steps < found.training.max_steps / 2
