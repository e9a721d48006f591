from types import SimpleNamespace

import lightning
import pytest
import torch

from conftest import make_words, write_pairs
from dragoman import PairDataModule, Transformer, read_settings
from dragoman.errors import DataError
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


def test_targets_with_letters_met_after_the_training_rows_are_counted_and_named(tmp_path):
    rows = [f"{word}\t{word.upper()}\n" for word in make_words(98)] + ["aé\tAÉ\n", "aü\tÜÉ\n"]
    (tmp_path / "train.tsv").write_text("".join(rows))
    (tmp_path / "valid.tsv").write_text("zzz\tZZA\n")
    words = ["--data.valid", str(tmp_path / "valid.tsv"), "--tokenizer.training_rows", "98"]
    [note] = [note for note in prepare(tmp_path / "train.tsv", *words).notes if "lacks" in note]
    assert "2 x train target\n1 x valid target" in note
    assert "train.tsv:100: 'Ü', 'É'" in note
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
