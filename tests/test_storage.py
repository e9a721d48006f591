"""A folder is replaced at one stroke, and what a killed process leaves is swept up, nothing else."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dragoman.storage as replacing
from dragoman.storage import replace_folder, staged_folder, sweep_folder

NAMES = ("a", "b", "c/d", "c/e")


def write(folder, content):
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def read(folder):
    """The content, the same in every file."""
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == sorted(
        NAMES
    )
    [content] = {(folder / name).read_text() for name in NAMES}
    return content


def is_whole(folder):
    return all((folder / name).is_file() for name in NAMES)


def names_in(folder):
    return sorted(one.name for one in folder.iterdir())


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    """Both ways: that of Linux, and that of systems that cannot exchange."""
    if request.param == "two renames":
        monkeypatch.setattr(replacing, "_exchange", lambda path, partial: False)
    elif not sys.platform.startswith("linux"):
        pytest.skip("no renameat2")
    return request.param


def test_a_staged_folder_takes_the_place_of_what_stood_there(way, tmp_path):
    for content in ("old", "new", "newer"):
        with staged_folder(tmp_path / "model") as folder:
            write(folder, content)
            assert folder.parent == tmp_path
        assert read(tmp_path / "model") == content
        assert names_in(tmp_path) == ["model"]


def test_a_body_that_fails_leaves_all_as_it_was(way, tmp_path):
    with staged_folder(tmp_path / "model") as folder:
        write(folder, "old")
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "model") as folder:
        write(folder, "new")
        raise ZeroDivisionError
    assert read(tmp_path / "model") == "old"
    assert names_in(tmp_path) == ["model"]


def test_folders_above_are_made(tmp_path):
    with staged_folder(tmp_path / "x" / "y" / "model") as folder:
        write(folder, "new")
    assert read(tmp_path / "x" / "y" / "model") == "new"


def test_a_link_to_a_folder_stays_and_the_folder_is_replaced(way, tmp_path):
    (tmp_path / "disk").mkdir()
    write(tmp_path / "disk" / "model", "old")
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    with staged_folder(tmp_path / "model") as folder:
        write(folder, "new")
    assert (tmp_path / "model").is_symlink()
    assert read(tmp_path / "disk" / "model") == "new"
    assert names_in(tmp_path) == ["disk", "model"]
    assert names_in(tmp_path / "disk") == ["model"]


def test_a_file_in_its_place_is_left_alone(tmp_path):
    (tmp_path / "model").write_text("mine")
    with (
        pytest.raises(OSError, match="a file stands there"),
        staged_folder(tmp_path / "model") as f,
    ):
        write(f, "new")
    assert (tmp_path / "model").read_text() == "mine"
    assert names_in(tmp_path) == ["model"]


def test_where_the_second_rename_fails_the_old_folder_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(replacing, "_exchange", lambda path, partial: False)
    write(tmp_path / "model", "old")
    write(tmp_path / "partial", "new")
    rename = Path.rename

    def fail_once(self, target):
        if self.name == "partial":
            raise OSError(errno.EIO, "disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="disk"):
        replace_folder(tmp_path / "model", tmp_path / "partial")
    assert read(tmp_path / "model") == "old"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no renameat2")
def test_on_linux_folders_are_exchanged_in_one_step(tmp_path):
    write(tmp_path / "model", "old")
    write(tmp_path / "partial", "new")
    assert replacing._exchange(tmp_path / "model", tmp_path / "partial")
    assert (read(tmp_path / "model"), read(tmp_path / "partial")) == ("new", "old")


def test_only_names_of_our_own_are_swept(tmp_path):
    write(tmp_path / "model", "mine")
    theirs = [
        ".model.tmp-", ".model.tmp-12x", ".model.tmp-12-abc", ".model.tmp", ".model.old",
        "model.tmp-12", ".model2.tmp-12", ".model.tmp-12-0123456789", ".model.training",
        ".other.tmp-12", ".model.tmp-12.bak", ".xmodel.tmp-3", ".model.new-12-0123abcd",
    ]  # fmt: skip
    ours = [".model.tmp-12", ".model.tmp-12-0123abcd", ".model.old-7-ffffffff", ".model.old-7"]
    for name in theirs + ours:
        (tmp_path / name).mkdir()
    (tmp_path / ".model.tmp-99").write_text("a file, of now")
    (tmp_path / ".model.tmp-98").symlink_to(tmp_path / "model")
    sweep_folder(tmp_path / "model", is_whole)
    assert names_in(tmp_path) == sorted(["model", *theirs, ".model.tmp-98", ".model.tmp-99"])
    assert read(tmp_path / "model") == "mine"


def test_a_name_with_signs_of_expressions_is_taken_as_it_is(tmp_path):
    (tmp_path / ".mXdel.tmp-1").mkdir()
    (tmp_path / ".m.del.tmp-1").mkdir()
    sweep_folder(tmp_path / "m.del", is_whole)
    assert names_in(tmp_path) == [".mXdel.tmp-1"]


def test_the_last_whole_copy_is_put_back_where_the_folder_is_missing(tmp_path):
    for number, content in enumerate(("older", "old", "cut")):
        copy = tmp_path / f".model.old-{number}-0123abcd"
        write(copy, content)
        os.utime(copy, (1000 + number, 1000 + number))
    (tmp_path / ".model.old-2-0123abcd" / "b").unlink()
    write(tmp_path / ".model.tmp-5-0123abcd", "half")
    sweep_folder(tmp_path / "model", is_whole)
    assert read(tmp_path / "model") == "old"
    assert names_in(tmp_path) == ["model"]


def test_a_folder_that_somebody_is_writing_is_not_swept(tmp_path):
    with staged_folder(tmp_path / "model") as folder:
        write(folder, "new")
        sweep_folder(tmp_path / "model", is_whole)
        assert read(folder) == "new"
    assert read(tmp_path / "model") == "new"


def test_nothing_to_sweep_is_no_fault(tmp_path):
    sweep_folder(tmp_path / "nowhere" / "model", is_whole)
    sweep_folder(tmp_path / "model", is_whole)
    assert names_in(tmp_path) == []


WRITER = """
import sys
from pathlib import Path
import dragoman.storage as replacing
if sys.argv[2] == "two renames":
    replacing._exchange = lambda path, partial: False
print("ready", flush=True)
for number in range(1_000_000):
    with replacing.staged_folder(Path(sys.argv[1])) as folder:
        for name in ("a", "b", "c/d", "c/e"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(str(number))
"""


def start_writer(path, way):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), way], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "ready\n"
    return writer


@pytest.mark.parametrize("kind", ["exchange", "two renames"])
def test_after_a_kill_at_any_moment_a_whole_folder_is_there(kind, tmp_path):
    if kind == "exchange" and not sys.platform.startswith("linux"):
        pytest.skip("no renameat2")
    chance, place = random.Random(1), tmp_path / "model"
    write(place, "first")
    for _ in range(int(os.environ.get("DRAGOMAN_REPLACING_KILLS", "12"))):
        writer = start_writer(place, kind)
        time.sleep(chance.uniform(0.0, 0.15))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        if kind == "exchange":
            read(place)  # whole even before anybody sweeps
        sweep_folder(place, is_whole)
        assert read(place) == "first" or read(place).isdigit()
        assert names_in(tmp_path) == ["model"]
    assert read(place).isdigit()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no renameat2")
def test_there_is_a_folder_at_every_moment(tmp_path):
    """A reader that only looks, without a lock, never finds nothing."""
    place = tmp_path / "model"
    write(place, "first")
    writer = start_writer(place, "exchange")
    try:
        found = set()
        until_s = time.monotonic() + 2.0
        while time.monotonic() < until_s:
            found.add(place.stat().st_ctime_ns)  # raises where there is nothing
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert len(found) > 5
