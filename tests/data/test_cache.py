import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman import read_settings
from dragoman.data.cache import Cache, make_key

SETTINGS = read_settings(None, [])
KEY = make_key({"train": [["pairs.tsv", "0a"]]}, SETTINGS)
DAY_S = 86_400
FILES = {"a.arrow": b"some bytes" * 50, "b.json": b"{}", "empty": b""}


def write(folder, files=FILES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def digest(files):
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def kept(tmp_path, files=FILES, key=KEY):
    cache = Cache(tmp_path / "cache")
    write(tmp_path / "made", files)
    cache.keep(key, tmp_path / "made", digest(files))
    return cache


def take(cache, into, files=FILES, key=KEY):
    """What was taken, or None."""
    into.mkdir(exist_ok=True)
    digests = cache.take(key, into)
    if not digests:
        assert list(into.iterdir()) == []
        return None
    assert digests == digest(files)
    return {path.name: path.read_bytes() for path in into.iterdir()}


contents = st.dictionaries(st.sampled_from(["a", "b", "c.json"]), st.binary(), min_size=1)


@settings(max_examples=30)
@given(files=contents)
def test_kept_files_come_back_byte_for_byte(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    assert take(kept(folder, files), folder / "taken", files) == files


def test_the_key_depends_on_files_and_on_settings_of_data_and_tokenizer_alone():
    files = {"train": [["pairs.tsv", "0a"]], "valid": []}
    keys = {make_key(files, SETTINGS)}
    for same in (["--model.d_model", "64"], ["--preset", "tiny"], ["--data.cache", "none"]):
        assert make_key(files, read_settings(None, same)) in keys
    for other in (["--data.max_tokens", "9"], ["--tokenizer.source.kind", "bpe"]):
        keys.add(make_key(files, read_settings(None, other)))
    for changed in ([["pairs.tsv", "0b"]], [["pairs.csv", "0a"]], []):
        keys.add(make_key({**files, "train": changed}, SETTINGS))
    assert len(keys) == 6


def test_files_that_were_taken_outlive_their_entry(tmp_path):
    cache = kept(tmp_path)
    into = tmp_path / "taken"
    take(cache, into)
    cache.prune(largest_bytes=0)
    assert not (cache.folder / KEY).exists()
    assert {path.name: path.read_bytes() for path in into.iterdir()} == FILES


def test_changing_files_in_place_changes_neither_the_entry_nor_what_others_took(tmp_path):
    cache = kept(tmp_path)
    take(cache, tmp_path / "one")
    for changed in ("made", "one"):
        for path in (tmp_path / changed).iterdir():
            os.truncate(path, 1)
    assert take(cache, tmp_path / "two") == FILES


@pytest.mark.parametrize("name", [*FILES, "digests.json"])
def test_a_damaged_entry_is_removed(tmp_path, name):
    for damage in (lambda content: content[1:], lambda content: b"x" + content, lambda _: b"{}x"):
        cache = kept(tmp_path)
        path = cache.folder / KEY / name
        path.write_bytes(damage(path.read_bytes()))
        if name != "empty" or path.stat().st_size:
            assert take(cache, tmp_path / "taken") is None
            assert not list(cache.folder.iterdir())


def test_only_the_user_may_look_into_the_folder(tmp_path):
    cache = kept(tmp_path)
    assert cache.folder.stat().st_mode & 0o077 == 0


WORK = """
import sys
from pathlib import Path
from dragoman.data.cache import Cache
from dragoman.storage import sha256
key, folder, made, into = sys.argv[1], *map(Path, sys.argv[2:])
cache, files = Cache(folder), sorted(made.iterdir())
digests = {file.name: sha256(file) for file in files}
print("ready", flush=True)
for turn in range(int(sys.stdin.readline())):
    cache.keep(key, made, digests)
    if cache.take(key, into):
        assert [(into / file.name).read_bytes() for file in files] == [f.read_bytes() for f in files]
    if turn % 3 == 0:
        cache.remove(key)
    if turn % 5 == 0:
        cache.prune()
"""


def start_worker(tmp_path, name, made):
    (tmp_path / name).mkdir()
    words = [sys.executable, "-c", WORK, KEY, tmp_path / "cache", made, tmp_path / name]
    worker = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdout.readline() == b"ready\n"
    return worker


def test_concurrent_processes_never_see_half_an_entry(tmp_path):
    write(tmp_path / "made")
    workers = [start_worker(tmp_path, f"worker{i}", tmp_path / "made") for i in range(3)]
    for worker in workers:
        worker.stdin.write(b"200\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=120)
    assert [worker.returncode for worker in workers] == [0, 0, 0]


@pytest.mark.parametrize("after_s", [0.0, 0.003, 0.01, 0.02, 0.05])
def test_a_killed_run_leaves_no_partial_entry(tmp_path, after_s):
    files = {f"{i}": bytes([i]) * 2_000_000 for i in range(10)}
    write(tmp_path / "made", files)
    worker = start_worker(tmp_path, "worker", tmp_path / "made")
    worker.stdin.write(b"1000000\n")
    worker.stdin.flush()
    time.sleep(after_s)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    cache = Cache(tmp_path / "cache")
    assert take(cache, tmp_path / "taken", files) in (None, files)
    for left in cache.folder.glob(".staged-*"):
        os.utime(left, (0, 0))
    cache.prune()
    assert not list(cache.folder.glob(".staged-*"))
    cache.keep(KEY, tmp_path / "made", digest(files))
    assert take(cache, tmp_path / "taken", files) == files


def make_entries(tmp_path, ages_days, size=100):
    cache, keys = Cache(tmp_path / "cache"), []
    for age in ages_days:
        keys.append(make_key({"train": [["pairs.tsv", str(age)]]}, SETTINGS))
        kept(tmp_path, {"x": bytes(size)}, keys[-1])
        used_s = time.time() - age * DAY_S
        os.utime(cache.folder / keys[-1], (used_s, used_s))
    return cache, keys


def test_an_entry_unused_for_thirty_days_is_removed(tmp_path):
    cache, (_new, _month, old) = make_entries(tmp_path, [0, 29, 31])
    assert cache.prune() == [old]
    assert cache.prune() == []


def test_over_the_size_limit_the_entry_unused_for_longest_goes_first(tmp_path):
    cache, (oldest, old, new) = make_entries(tmp_path, [3, 2, 1], size=10_000)
    assert cache.prune(largest_bytes=25_000) == [oldest]
    assert cache.prune(largest_bytes=15_000) == [old]
    assert [path.name for path in cache.folder.iterdir()] == [new]


def test_taking_an_entry_counts_as_use(tmp_path):
    cache, (older, newer) = make_entries(tmp_path, [29, 28], size=10_000)
    take(cache, tmp_path / "taken", {"x": bytes(10_000)}, older)
    assert cache.prune(largest_bytes=15_000) == [newer]


def test_entries_of_earlier_versions_are_removed_by_age_and_size(tmp_path):
    cache, (new,) = make_entries(tmp_path, [0], size=10_000)
    aged = {f"survey-{'0' * 64}": 31, f"ids-{'1' * 64}": 2}
    for key, age in aged.items():
        write(cache.folder / key, {"manifest.json": bytes(10_000)})
        os.utime(cache.folder / key, (time.time() - age * DAY_S,) * 2)
    assert cache.prune() == [f"survey-{'0' * 64}"]
    assert cache.prune(largest_bytes=15_000) == [f"ids-{'1' * 64}"]
    assert [path.name for path in cache.folder.iterdir()] == [new]


def test_other_files_in_the_folder_stay(tmp_path):
    cache, _ = make_entries(tmp_path, [99])
    write(cache.folder / "photos")
    (cache.folder / "data-1").write_text("mine")
    for path in cache.folder.iterdir():
        os.utime(path, (0, 0))
    cache.prune(largest_bytes=0)
    assert {path.name for path in cache.folder.iterdir()} == {"photos", "data-1"}
    assert len(list((cache.folder / "photos").iterdir())) == len(FILES)


def test_the_folder_is_where_xdg_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache.open("auto").folder == tmp_path / "dragoman"
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert Cache.open("auto").folder == tmp_path / ".cache" / "dragoman"
    assert Cache.open(str(tmp_path / "mine")).folder == tmp_path / "mine"
    assert Cache.open("none") is None
