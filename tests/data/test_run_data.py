import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from conftest import make_words
from dragoman import PairDataModule, read_settings
from dragoman.configuration import merge_settings
from dragoman.data.run_data import RunData
from dragoman.errors import DataError
from dragoman.presets import choose_settings
from dragoman.reading.pairs import cut_table, read_pairs, read_part

SKIP = ["--data.broken_rows", "skip", "--data.long_rows", "skip", "--data.max_tokens", "590"]


@pytest.fixture
def files(tmp_path):
    """Files with a leak, invalid rows and long rows, large enough to be kept."""
    words = make_words(1500)
    rows = {
        "train": [f"{w * 100}\t{w.upper() * 100}" for w in words[:1400]] + ["broken"],
        "valid": [f"{w}\t{w.upper()}" for w in words[1400:]] + [f"{words[0] * 100}\tleak", "b"],
        "test": [f"{w}\t{w.upper()}" for w in words[1400:1450]],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def words_of(files, *more):
    held_out = ["--data.valid", f"{files}/valid.tsv", "--data.test", f"{files}/test.tsv"]
    return [*SKIP, *held_out, "--data.cache", f"{files}/cache", *more]


def prepare(files, *words):
    data = PairDataModule(files / "train.tsv", read_settings(None, words_of(files, *words)))
    data.setup("fit")
    return data


def is_hit(data):
    assert ("from the cache" in data.cache_note) != ("kept in" in data.cache_note)
    return "from the cache" in data.cache_note


def result_of(data):
    """All that preparing gives, as plain values."""
    settings = data.settings.model_dump()
    settings["data"].pop("cache")
    ids = {split: (data.folder / f"{split}.arrow").read_bytes() for split in data.num_rows}
    return settings, data.notes, data.num_rows, data.tokenizer.to_dict(), ids


@pytest.mark.parametrize("more", [[], ["--tokenizer.target.kind", "bpe"], ["--preset", "large"]])
def test_the_cache_gives_byte_for_byte_what_preparing_does(files, more):
    plain = prepare(files, "--data.cache", "none", *more)
    first, second = (prepare(files, *more) for _ in range(2))
    assert (plain.cache_note, is_hit(first), is_hit(second)) == ("", False, True)
    assert result_of(plain) == result_of(first) == result_of(second)
    output = "\n".join(second.notes)
    for part in ("leak: 1 of the 101", "train.tsv:1401", "valid.tsv:102", "over data.max_tokens"):
        assert part in output


def test_ids_from_the_cache_make_the_same_batches(files):
    first, second = prepare(files), prepare(files)
    for ours, theirs in zip(first.train_dataloader(), second.train_dataloader(), strict=True):
        assert ours.source_ids.tolist() == theirs.source_ids.tolist()
        assert ours.target_ids.tolist() == theirs.target_ids.tolist()


@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_another_byte_in_any_file_is_another_entry(files, name):
    prepare(files)
    path = files / f"{name}.tsv"
    stamp = path.stat()
    path.write_bytes(path.read_bytes().replace(b"A", b"Z", 1))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # size and time are as they were
    after = prepare(files)
    assert not is_hit(after)
    assert result_of(after) == result_of(prepare(files, "--data.cache", "none"))


@pytest.mark.parametrize(
    "words",
    [
        ["--data.max_tokens", "580"],
        ["--data.max_characters", "4000"],
        ["--data.leading_tags", "true"],
        ["--data.test", ""],
        ["--tokenizer.source.kind", "bpe"],
        ["--tokenizer.source.unicode_form", "nfd"],
        ["--tokenizer.training_rows", "100"],
    ],
)
def test_another_setting_of_data_or_tokenizer_is_another_entry(files, words):
    prepare(files)
    after = prepare(files, *words)
    assert not is_hit(after)
    assert result_of(after) == result_of(prepare(files, *words, "--data.cache", "none"))


@pytest.mark.parametrize(
    "words",
    [
        ["--model.d_model", "64"],
        ["--training.seed", "7", "--training.batch_tokens", "700"],
        ["--decoding.max_length_ratio", "1.5"],
        ["--data.weights", "2"],
        ["--preset", "small"],  # another preset, but the same tokens
    ],
)
def test_another_model_finds_the_same_entry(files, words):
    prepare(files)
    after = prepare(files, *words)
    assert is_hit(after)
    assert result_of(after) == result_of(prepare(files, *words, "--data.cache", "none"))


def test_a_note_that_depends_on_decoding_is_not_cached(files):
    prepare(files)
    words = ["--decoding.max_length_extra", "1", "--decoding.max_length_ratio", "0"]
    [note] = [note for note in prepare(files, *words).notes if "longest output" in note]
    assert "training targets are longer" in note


def test_a_truncated_entry_is_replaced(files):
    first = prepare(files)
    [path] = (files / "cache").glob("data-*/train.arrow")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    second = prepare(files)
    assert not is_hit(second)
    assert is_hit(prepare(files))
    assert result_of(first) == result_of(second)


@pytest.mark.parametrize("name", ["findings.json", "tokenizer.json", "train.arrow"])
def test_an_entry_with_a_flipped_bit_is_replaced(files, name):
    first = prepare(files)
    [path] = (files / "cache").glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    second = prepare(files)
    assert not is_hit(second)
    assert result_of(first) == result_of(second) == result_of(prepare(files))


def test_other_choices_for_the_same_files_are_not_served_from_the_cache(files, monkeypatch):
    words = words_of(files)[:-2]  # with the default cache
    words += ["--data.valid", "", "--data.cache", f"{files}/cache"]
    for fraction in (0.5, 0.4):

        def choose(settings, statistics, is_parallel, fraction=fraction):
            chosen = merge_settings(settings, {"data.valid_fraction": fraction})
            return choose_settings(chosen, statistics, is_parallel=is_parallel)

        monkeypatch.setattr("dragoman.training.datamodule.choose_settings", choose)
        data = PairDataModule(files / "train.tsv", read_settings(None, words))
        data.prepare_data()
        assert data.settings.data.valid_fraction == fraction
        assert "from the cache" not in data.cache_note
        assert 0.8 < data.num_rows["valid"] / (sum(data.num_rows.values()) - 50) / fraction < 1.2


def test_files_that_change_while_they_are_read_are_not_kept(files):
    settings = read_settings(None, words_of(files))
    folder = files / "data"
    folder.mkdir()
    data = RunData.read([files / "train.tsv"], settings, folder)
    (files / "train.tsv").write_text("a\tb\n")
    data.encode(choose_settings(settings, data.statistics).settings)
    assert "the files have changed" in data.cache_note
    assert data.num_rows["train"] > 1000
    assert not (files / "cache").exists()


def test_small_data_are_not_cached_nor_any_with_cache_none(files):
    (files / "small.tsv").write_text("".join(f"{w}\t{w}\n" for w in make_words(300)))
    words = ["--data.cache", f"{files}/cache"]
    data = PairDataModule(files / "small.tsv", read_settings(None, words))
    data.prepare_data()
    assert data.cache_note == ""
    prepare(files, "--data.cache", "none")
    assert not (files / "cache").exists()


def test_two_runs_at_once_prepare_the_same(files):
    code = (
        "import hashlib, sys\nfrom pathlib import Path\n"
        "from dragoman import PairDataModule, read_settings\n"
        "data = PairDataModule(sys.argv[1], read_settings(None, sys.argv[2:]))\n"
        "data.prepare_data()\n"
        "print(hashlib.sha256((data.folder / 'train.arrow').read_bytes()).hexdigest())"
    )
    words = [sys.executable, "-c", code, str(files / "train.tsv"), *words_of(files)]
    runs = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(2)]
    found = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert found[0] == found[1] != b""
    assert is_hit(prepare(files))
    assert len(list((files / "cache").iterdir())) == 1


def test_an_unwritable_cache_is_reported_and_the_run_continues(files):
    (files / "cache").write_text("a file")
    data = prepare(files)
    assert data.cache_note == (
        f"prepared data: not kept, {files / 'cache'} cannot be written (File exists)"
    )
    assert result_of(data) == result_of(prepare(files, "--data.cache", "none"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_cache_is_read_and_reported(files):
    prepare(files)
    (files / "cache").chmod(0o500)
    try:
        assert is_hit(prepare(files))
        assert "cannot be written" in prepare(files, "--data.max_tokens", "580").cache_note
    finally:
        (files / "cache").chmod(0o700)


def test_pairs_from_a_pipe_are_not_cached(files):
    pipe, rows = files / "pipe.tsv", "".join(f"{w * 99}\t{w * 99}\n" for w in make_words(2000))
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=[rows])
    writer.start()
    data = RunData.read([pipe], read_settings(None, ["--data.cache", f"{files}/cache"]), files)
    writer.join()
    assert data.statistics.num_pairs == 2000
    assert data.sha256 == {}
    assert not (files / "cache").exists()


def test_an_entry_holds_no_pickle_and_names_no_file_outside_it(files):
    prepare(files)
    names = {path.name for path in (files / "cache").glob("*/*")}
    assert names == {
        "digests.json", "findings.json", "tokenizer.json", "train.arrow", "valid.arrow", "test.arrow",
        "train.text.arrow", "valid.text.arrow", "test.text.arrow",
    }  # fmt: skip
    for path in (files / "cache").glob("*/*.json"):
        json.loads(path.read_text())


def test_each_file_is_parsed_once_unless_tags_are_found(files, monkeypatch):
    parsed = []

    def count(part, *rest):
        parsed.append(part.files[0].name)
        return read_part(part, *rest)

    monkeypatch.setattr("dragoman.data.preparation.read_part", count)
    prepare(files, "--data.cache", "none")
    assert parsed == ["train.tsv", "valid.tsv", "test.tsv"]
    tagged = files / "tagged.tsv"
    tagged.write_text("".join(f"<up> {w}\t{w.upper()}\n" for w in make_words(300)))
    parsed.clear()
    data = PairDataModule(tagged, read_settings(None, ["--data.cache", "none"]))
    data.prepare_data()
    assert parsed == ["tagged.tsv"] * 2
    assert next(data.read_split("train")).features == ("<up>",)


def test_the_text_of_the_pairs_is_kept_as_it_was_read(files):
    rows = "".join(f"a{i}|\u0301{w}\tx\t{i % 7}\n" for i, w in enumerate(make_words(200)))
    (files / "rows.tsv").write_text(rows)
    words = ["--data.features", "3", "--data.valid_fraction", "0.3", "--data.cache", "none"]
    data = PairDataModule(files / "rows.tsv", read_settings(None, words))
    data.prepare_data()
    kept = [*data.read_split("train"), *data.read_split("valid")]
    assert sorted(kept) == sorted(read_pairs(files / "rows.tsv", data.settings.data))


def test_rows_that_are_left_out_are_in_no_split(files):
    for data in (prepare(files), prepare(files)):
        rows = {split: [*data.read_split(split)] for split in data.num_rows}
        assert {split: len(found) for split, found in rows.items()} == data.num_rows
        assert data.num_rows["valid"] == 100  # without the one over data.max_tokens
        names = data.data.name_rows(np.arange(len(rows["train"])))
        assert names == [f"{row.file}:{row.line}" for row in rows["train"]]


def test_rows_of_several_files_keep_the_name_of_theirs(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    words = make_words(60)
    for number in range(3):
        lines = [f"{word}\t{word.upper()}\n" for word in words[20 * number : 20 * number + 20]]
        (shards / f"{number}.tsv").write_text("".join(lines))
    settings = read_settings(None, ["--data.cache", "none", "--data.valid_fraction", "0.1"])
    data = RunData.read([shards / "*.tsv"], settings, tmp_path)
    data.encode(choose_settings(settings, data.statistics).settings)
    again = RunData.reopen(data.paths, settings.data, tmp_path, data.digests)
    for one in (data, again):
        rows = list(one.read_split("train"))
        assert {Path(row.file).name for row in rows} == {"0.tsv", "1.tsv", "2.tsv"}
        assert all(
            Path(row.file).read_text().splitlines()[row.line - 1].startswith(row.source)
            for row in rows
        )
        names = one.name_rows(np.arange(len(rows)))
        assert names == [f"{row.file}:{row.line}" for row in rows]
    assert not data.is_parallel


def write_parts(folder, broken=()):
    """Write two files of pairs, with invalid rows in the lines `broken` of the second."""
    for name, offset in (("a", 0), ("b", 3000)):
        words = [f"{word * 30}{offset}" for word in make_words(1000)]
        lines = [f"{word}\t{word.upper()}" for word in words]  # longer than the head of a file
        for line in broken if name == "b" else ():
            lines[line - 1] = "broken"
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return [folder / "a.tsv", folder / "b.tsv"]


def prepare_parts(paths, folder, *words):
    skip = ["--data.broken_rows", "skip", "--data.cache", "none"]
    data = PairDataModule(paths, read_settings(None, [*skip, *words]), folder)
    data.prepare_data()
    return data


@pytest.mark.parametrize("processes", ["1", "2", "3"])
def test_processes_and_parts_give_what_one_part_gives(tmp_path, monkeypatch, processes):
    paths = write_parts(tmp_path, broken=(57, 400, 999))
    whole = prepare_parts(paths, tmp_path / "whole", "--data.processes", "1")
    monkeypatch.setattr("dragoman.data.run_data._PART_LINES", 90)
    assert len(cut_table(paths[:1], whole.settings.data, 90)) > 3
    parts = prepare_parts(paths, tmp_path / "parts", "--data.processes", processes)
    assert parts.tokenizer.to_dict() == whole.tokenizer.to_dict()
    assert (parts.num_rows, parts.data.statistics) == (whole.num_rows, whole.data.statistics)
    for one, other in zip(
        parts.data.invalid_rows.examples, whole.data.invalid_rows.examples, strict=True
    ):
        assert one == other
    for split in ("train", "valid", "test"):
        assert [*parts.read_split(split)] == [*whole.read_split(split)]
        rows = np.arange(parts.num_rows[split])
        ids, expected = (data.data.ids(split).gather(rows) for data in (parts, whole))
        assert ids.source_ids.equal(expected.source_ids)
        assert ids.target_ids.equal(expected.target_ids)


def test_an_invalid_row_of_a_later_part_is_named_by_its_line(tmp_path, monkeypatch):
    paths = write_parts(tmp_path, broken=(777,))
    monkeypatch.setattr("dragoman.data.run_data._PART_LINES", 90)
    with pytest.raises(DataError, match=r"b\.tsv:777"):
        prepare_parts(paths, tmp_path / "parts", "--data.broken_rows", "error")


def test_an_added_file_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("dragoman.data.run_data._FEWEST_PAIRS", 1)
    monkeypatch.setattr("dragoman.data.run_data._FEWEST_CHARACTERS", 1)
    first, second = write_parts(tmp_path)
    cache = ["--data.cache", str(tmp_path / "cache")]
    prepare_parts([first], tmp_path / "one", *cache)
    read = []

    def note(part, *rest):
        read.append(part.files[0].name)
        return read_part(part, *rest)

    monkeypatch.setattr("dragoman.data.preparation.read_part", note)
    both = prepare_parts([first, second], tmp_path / "both", *cache, "--data.processes", "1")
    assert read == ["b.tsv"]
    afresh = prepare_parts([first, second], tmp_path / "afresh")
    assert [*both.read_split("train")] == [*afresh.read_split("train")]


def test_files_of_a_run_have_the_same_columns_as_its_first(tmp_path, monkeypatch):
    monkeypatch.setattr("dragoman.data.run_data._FEWEST_PAIRS", 1)
    monkeypatch.setattr("dragoman.data.run_data._FEWEST_CHARACTERS", 1)
    words = make_words(300)
    for name, part in (("a", words[:200]), ("b", words[200:250]), ("c", words[250:])):
        rows = [{"en": word, "de": word.upper()} for word in part]
        if name != "a":
            rows = [dict(reversed(row.items())) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    a, b, c = (tmp_path / f"{name}.jsonl" for name in "abc")
    cache = ["--data.cache", str(tmp_path / "cache")]
    alone = prepare_parts([b], tmp_path / "alone", *cache)
    assert all(pair.target.islower() for pair in alone.read_split("train"))
    for pairs in ([a, b], [{"en": word, "de": word.upper()} for word in words[:200]]):
        folder = tmp_path / f"run-{len(pairs)}"
        data = prepare_parts(pairs, folder, *cache, "--data.valid", str(c))
        read = [*data.read_split("train"), *data.read_split("valid")]
        assert all(pair.source.islower() and pair.target.isupper() for pair in read)
