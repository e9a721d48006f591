from collections import Counter
from types import SimpleNamespace

import lightning
import pytest
import torch

from conftest import make_words, write_pairs
from dragoman import PairDataModule, Transformer, inspect, read_settings
from dragoman.errors import DataError, SettingsError
from dragoman.settings import OptimizationSettings
from dragoman.tokenizers.tokenizer import UNKNOWN_ID
from dragoman.training.module import TransformerTraining


def prepare(pairs, *words):
    data = PairDataModule(pairs, read_settings(None, list(words)))
    data.prepare_data()
    data.setup("fit")
    return data


def sources_of(data, split):
    return [pair.source for pair in data.read_split(split)]


def test_no_source_stands_in_two_splits_and_none_is_lost(tmp_path):
    rows = "".join(f"{w}\t{w.upper()}\n{w}\t{w.title()}\n" for w in make_words(400))
    (tmp_path / "pairs.tsv").write_text(rows)
    data = prepare(
        tmp_path / "pairs.tsv", "--data.valid_fraction", "0.2", "--data.test_fraction", "0.2"
    )
    splits = {split: sources_of(data, split) for split in ("train", "valid", "test")}
    assert {split: len(rows) for split, rows in splits.items()} == data.num_rows
    assert sum(data.num_rows.values()) == 800
    distinct = [set(rows) for rows in splits.values()]
    assert sum(map(len, distinct)) == len(set.union(*distinct)) == 400


def test_pairs_are_given_as_in_fit(tmp_path):
    rows = [(word, word.upper()) for word in make_words(40)]
    columns = dict(zip(("source", "target"), map(list, zip(*rows, strict=True)), strict=True))
    write_pairs(tmp_path / "pairs.tsv", 40)
    for pairs in (rows, columns, ()):
        data = prepare(pairs, "--data.cache", "none", "--data.train", str(tmp_path / "pairs.tsv"))
        assert sum(data.num_rows.values()) == 40


def test_a_teacher_is_not_ignored(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 40)
    for setting in ("training.teacher", "data.unlabelled"):
        with pytest.raises(
            SettingsError, match=r"only `dragoman fit` trains on outputs of a teach"
        ):
            prepare(pairs, f"--{setting}", "some")


def test_weights_are_by_the_names_that_are_given(tmp_path):
    words = make_words(90)
    (tmp_path / "shards").mkdir()
    for i, name in enumerate(["shards/a.tsv", "shards/b.tsv", "c.tsv"]):
        rows = [f"{word}\t{word.upper()}\n" for word in words[30 * i : 30 * i + 30]]
        (tmp_path / name).write_text("".join(rows))
    pairs = [tmp_path / "shards" / "*.tsv", tmp_path / "c.tsv"]
    data = prepare(pairs, "--data.weights", "2,0.5", "--data.cache", "none")
    loader = data.train_dataloader()
    drawn = Counter[str]()
    for _ in range(2):
        for batch in loader:
            drawn.update(data.data.name_rows(batch.rows))
    held_out = {pair.source for pair in data.read_split("valid")}
    kept = [word not in held_out for word in words]
    assert drawn == {
        f"{path}:{line}": times
        for path, times, first in [
            (tmp_path / "shards" / "a.tsv", 4, 0),
            (tmp_path / "shards" / "b.tsv", 4, 30),
            (tmp_path / "c.tsv", 1, 60),
        ]
        for line in range(1, 31)
        if kept[first + line - 1]
    }
    num_many, num_few = sum(kept[:60]), sum(kept[60:])
    assert (
        f"weights: an epoch is 2 x {num_many} + 0.5 x {num_few} = "
        f"{2 * num_many + num_few / 2:,.0f} pairs"
    ) in data.notes


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["a.tsv", "b.tsv"], "1", "1 given, for 2 training inputs"),
        (["a.tsv", "b.tsv"], "1,2,3", "3 given, for 2 training inputs"),
        (["a.txt", "b.txt"], "1,2", "two parallel texts are one"),
        (["a.tsv", "b.tsv"], "1,0.01", "b.tsv are fewer than two in an epoch; give at least"),
        (["a.tsv", "b.tsv"], "1,0", "--data.weights: 0 is too small: give more than 0"),
        (["a.tsv", "b.tsv"], "1,-2", "--data.weights: -2 is too small: give more than 0"),
        (["a.tsv", "b.tsv"], "1,nan", "--data.weights: 'nan' is not a number"),
        (["a.tsv", "b.tsv"], "1,x", "--data.weights: 'x' is not a number"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(tmp_path, names, weights, message):
    for name in names:
        write_pairs(tmp_path / name, 40)
    with pytest.raises(SettingsError) as fault:
        data = prepare([tmp_path / name for name in names], "--data.weights", weights)
        data.train_dataloader()
    assert message in str(fault.value)


def test_only_the_first_rank_writes_into_the_folder(tmp_path):
    pairs, folder = write_pairs(tmp_path / "pairs.tsv", 300), tmp_path / "new" / "data"
    first, second = (PairDataModule(pairs, folder=folder) for _ in range(2))
    second.trainer = SimpleNamespace(global_rank=1, world_size=2)
    first.prepare_data()
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    second.setup("fit")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert second.folder != first.folder == folder
    assert second.tokenizer.to_dict() == first.tokenizer.to_dict()


def test_given_files_are_the_splits_and_nothing_is_taken_from_the_training(tmp_path):
    train, valid = write_pairs(tmp_path / "train.tsv", 300), tmp_path / "valid.tsv"
    valid.write_text("zzz\tZZZ\n")
    data = prepare(train, "--data.valid", str(valid))
    assert data.num_rows == {"train": 300, "valid": 1, "test": 0}
    assert sources_of(data, "valid") == ["zzz"]


def test_the_tokenizer_sees_the_training_pairs_alone(tmp_path):
    train, valid = write_pairs(tmp_path / "train.tsv", 300), tmp_path / "valid.tsv"
    valid.write_text("zzz\tZZZ\n")
    data = prepare(train, "--data.valid", str(valid))
    ids = data.tokenizer.encode_sources(["zzz", "abc"], [(), ()])
    assert [row.count(UNKNOWN_ID) for row in ids] == [3, 0]


def test_letters_beside_the_training_rows_are_counted_and_named(tmp_path):
    rows = [f"{word}\t{word.upper()}\n" for word in make_words(98)] + ["aé\tAÉ\n", "aü\tÜÉ\n"]
    (tmp_path / "train.tsv").write_text("".join(rows))
    (tmp_path / "valid.tsv").write_text("zzz\tZZA\n")
    words = ["--data.valid", str(tmp_path / "valid.tsv"), "--tokenizer.training_rows", "50"]
    [note] = [note for note in prepare(tmp_path / "train.tsv", *words).notes if "lacks" in note]
    assert "1 x train target\n1 x train source\n1 x valid target\n1 x valid source" in note
    assert "train.tsv:100: 'Ü'" in note
    assert "train.tsv:100: 'ü'" in note
    assert "valid.tsv:1: 'Z'" in note


def test_the_batches_hold_the_ids_of_the_pairs(tmp_path):
    data = prepare(write_pairs(tmp_path / "train.tsv", 300))
    seen = []
    for batch in data.train_dataloader():
        for source, target in zip(batch.source_ids, batch.target_ids, strict=True):
            text = data.tokenizer.source.decode(source.tolist())
            assert data.tokenizer.decode_target(target.tolist()) == text.upper()
            seen.append(text)
    assert sorted(seen) == sorted(sources_of(data, "train"))
    assert sum(map(len, data.val_dataloader())) == data.num_rows["valid"]


def test_held_out_sources_among_the_training_pairs_are_reported(tmp_path):
    train, valid = write_pairs(tmp_path / "train.tsv", 300), tmp_path / "valid.tsv"
    valid.write_text("zzz\tZZZ\n" + train.read_text().splitlines()[0] + "\n")
    data = prepare(train, "--data.valid", str(valid))
    assert any("leak: 1 of the 2 sources of data.valid" in note for note in data.notes)


def test_a_held_out_source_in_another_unicode_form_is_a_leak(tmp_path):
    train, valid = write_pairs(tmp_path / "train.tsv", 300), tmp_path / "valid.tsv"
    train.write_text(train.read_text() + "caf\u00e9\tCAFE\n")
    valid.write_text("cafe\u0301\tCAFE\n")
    data = prepare(train, "--data.valid", str(valid))
    assert any("leak: 1 of the 1 sources of data.valid" in note for note in data.notes)
    found = inspect(train, read_settings(None, ["--data.valid", str(valid)])).findings
    assert "leakage" in [one.kind for one in found]


def test_named_columns_are_reported(tmp_path):
    (tmp_path / "pairs.csv").write_text(
        "wort,laut\n" + "".join(f"{w},{w}\n" for w in make_words(99))
    )
    notes = prepare(tmp_path / "pairs.csv").notes
    assert any("columns: source 'wort', target 'laut'" in note for note in notes)


def test_a_validation_file_with_faults_is_refused(tmp_path):
    train, valid = write_pairs(tmp_path / "train.tsv", 100), tmp_path / "valid.tsv"
    valid.write_text("a\tb\nc\n")
    with pytest.raises(DataError, match=r"valid\.tsv:2"):
        prepare(train, "--data.valid", str(valid))


def test_a_resumed_run_gets_the_batches_that_would_have_followed(tmp_path):
    data_words = ["--training.batch_tokens", "200", "--model.dropout", "0"]
    pairs = write_pairs(tmp_path / "train.tsv", 300)

    def train(max_steps, checkpoint=None):
        data = prepare(pairs, *data_words)
        torch.manual_seed(0)
        module = TransformerTraining(
            Transformer(data.tokenizer.source_vocab_size, 16, 2, 1, 32, dropout=0.0,
                        target_vocab_size=data.tokenizer.target_vocab_size),
            OptimizationSettings(schedule="constant", warmup_steps=2),
        )  # fmt: skip
        trainer = lightning.Trainer(
            accelerator="cpu", max_steps=max_steps, max_epochs=-1, limit_val_batches=0,
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=checkpoint is not None or None)
        return trainer, module

    for stopped_after in (4, 17):  # within the first epoch, and within a later one
        trainer, _ = train(stopped_after)
        trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        _, resumed = train(25, tmp_path / "stopped.ckpt")
        _, whole = train(25)
        for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_rows_left_out_of_every_file_are_counted(tmp_path):
    train, valid = write_pairs(tmp_path / "train.tsv", 100), tmp_path / "valid.tsv"
    train.write_text(train.read_text() + "x\n")
    valid.write_text("a\tb\nc\n")
    data = prepare(train, "--data.valid", str(valid), "--data.broken_rows", "skip")
    [note] = [note for note in data.notes if "left out" in note]
    assert "train.tsv:101" in note
    assert "valid.tsv:2" in note
