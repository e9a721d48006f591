import json
import os
import subprocess
import sys

import pytest

from conftest import make_words
from dragoman import PairDataModule, read_settings
from dragoman.data.cache import Cache
from dragoman.data.prepared import PreparedData

SKIP = ["--data.broken_rows", "skip", "--data.long_rows", "skip", "--data.max_tokens", "590"]


@pytest.fixture
def files(tmp_path):
    """Files with a leak, broken rows and long rows, large enough to be kept."""
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
    assert ("from the cache" in data.told_of_cache) != ("kept in" in data.told_of_cache)
    return "from the cache" in data.told_of_cache


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
    assert (plain.told_of_cache, is_hit(first), is_hit(second)) == ("", False, True)
    assert result_of(plain) == result_of(first) == result_of(second)
    told = "\n".join(second.notes)
    for part in ("leak: 1 of the 101", "train.tsv:1401", "valid.tsv:102", "over data.max_tokens"):
        assert part in told


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
        ["--preset", "small"],  # another preset, but the same tokens
    ],
)
def test_another_model_finds_the_same_entry(files, words):
    prepare(files)
    after = prepare(files, *words)
    assert is_hit(after)
    assert result_of(after) == result_of(prepare(files, *words, "--data.cache", "none"))


def test_a_note_that_depends_on_decoding_is_made_anew(files):
    prepare(files)
    words = ["--decoding.max_length_extra", "1", "--decoding.max_length_ratio", "0"]
    [note] = [note for note in prepare(files, *words).notes if "longest output" in note]
    assert "training targets are longer" in note


def test_an_entry_that_was_torn_is_made_anew(files):
    first = prepare(files)
    [path] = (files / "cache").glob("ids-*/train.arrow")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    second = prepare(files)
    assert not is_hit(second)
    assert is_hit(prepare(files))
    assert result_of(first) == result_of(second)


@pytest.mark.parametrize("name", ["statistics.json", "findings.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"no JSON", b"\xff"])
def test_a_whole_entry_that_is_not_ours_is_made_anew(files, name, content):
    first = prepare(files)
    cache = Cache(files / "cache")
    [entry] = [path.parent for path in cache.folder.glob(f"*/{name}")]
    made = files / "foreign"
    made.mkdir()
    for path in entry.iterdir():
        if path.name != "manifest.json":
            (made / path.name).write_bytes(content if path.name == name else path.read_bytes())
    cache.remove(entry.name)
    cache.keep(entry.name, list(made.iterdir()))
    second = prepare(files)
    assert result_of(first) == result_of(second)
    assert result_of(prepare(files)) == result_of(first)


def test_files_that_change_while_they_are_read_are_not_kept(files):
    first = prepare(files, "--data.cache", "none")
    settings = read_settings(None, words_of(files))
    prepared = PreparedData([files / "train.tsv"], settings.data, first.folder)
    assert prepared.find_statistics(settings.data) is None
    assert prepared.find_ids(first.settings) is None
    (files / "train.tsv").write_text("a\tb\n")
    from dragoman.reading.statistics import collect_statistics

    prepared.keep(collect_statistics(first.read_split("valid")))
    assert not (files / "cache").exists()


def test_nothing_is_kept_of_a_small_set_nor_where_that_is_switched_off(files):
    (files / "small.tsv").write_text("".join(f"{w}\t{w}\n" for w in make_words(300)))
    words = ["--data.cache", f"{files}/cache"]
    data = PairDataModule(files / "small.tsv", read_settings(None, words))
    data.prepare_data()
    assert data.told_of_cache == ""
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
    assert len(list((files / "cache").iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_told_of_and_the_run_goes_on(files):
    (files / "cache").write_text("a file stands here")
    data = prepare(files)
    assert data.told_of_cache == (
        f"prepared data: not kept, {files / 'cache'} cannot be written (File exists)"
    )
    assert result_of(data) == result_of(prepare(files, "--data.cache", "none"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_read_and_told_of(files):
    prepare(files)
    (files / "cache").chmod(0o500)
    try:
        assert is_hit(prepare(files))
        assert "cannot be written" in prepare(files, "--data.max_tokens", "580").told_of_cache
    finally:
        (files / "cache").chmod(0o700)


def test_pairs_in_no_file_that_stays_are_not_looked_up(files):
    os.mkfifo(files / "pipe.tsv")
    data = read_settings(None, ["--data.cache", f"{files}/cache"]).data
    assert PreparedData([files / "pipe.tsv"], data, files).find_statistics(data) is None


def test_an_entry_holds_no_pickle_and_names_no_file_outside_it(files):
    prepare(files)
    names = {path.name for path in (files / "cache").glob("*/*")}
    assert names == {
        "manifest.json", "statistics.json", "findings.json", "tokenizer.json", "train.arrow",
        "valid.arrow", "test.arrow", "valid.jsonl", "test.jsonl",
    }  # fmt: skip
    for path in (files / "cache").glob("*/*.json"):
        json.loads(path.read_text())
