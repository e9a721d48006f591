"""What is read while a folder is replaced is one content or the other."""

import multiprocessing
import shutil
import sys
import threading
import time

import pytest

import dragoman.storage as replacing
from dragoman.errors import ModelFolderError
from dragoman.storage import replace_folder, staged_folder
from dragoman.undisturbed import read_undisturbed

NAMES = [f"file{i}" for i in range(20)]


def write(folder, content):
    for name in NAMES:
        (folder / name).write_text(content)


def read(folder, pause_s=0.0):
    found = []
    for name in NAMES:
        found.append((folder / name).read_text())
        time.sleep(pause_s)
    return found


def replace(path, content):
    with staged_folder(path) as folder:
        write(folder, content)


def replace_until_told(path, stop, can_exchange):
    replacing._bring_to_disk = replacing._sync = lambda folder: None  # as often as can be
    if not can_exchange:
        replacing._exchange = lambda path, partial: False
    number = 0
    while not stop.is_set():
        replace(path, f"{number}")
        number += 1


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_reader_never_gets_a_mixture(can_exchange, tmp_path):
    context, path = multiprocessing.get_context("spawn"), tmp_path / "model"
    replace(path, "first")
    stop = context.Event()
    writer = context.Process(target=replace_until_told, args=(path, stop, can_exchange))
    writer.start()
    try:
        while "first" in read_undisturbed([path], lambda: read(path)):
            time.sleep(0.01)  # it has yet to start
        seen = set()
        for _ in range(150):
            contents = set(read_undisturbed([path], lambda: read(path, 0.0002)))
            assert len(contents) == 1, contents
            seen |= contents
            time.sleep(0.005)  # else the writer would wait for its second each time
    finally:
        stop.set()
        writer.join()
    assert writer.exitcode == 0
    assert len(seen) > 10


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(tmp_path):
    path, times = tmp_path / "model", []
    replace(path, "old")
    write_new = tmp_path / "new"
    write_new.mkdir()
    write(write_new, "new")

    def read_slowly():
        times.append(1)
        first = (path / NAMES[0]).read_text()
        if len(times) == 1:  # by another process that waits for nobody
            shutil.move(path, tmp_path / "gone")
            write_new.rename(path)
        return [first, *read(path)]

    assert set(read_undisturbed([path], read_slowly)) == {"new"}
    assert len(times) == 2


def test_the_number_of_a_folder_that_is_gone_fools_nobody(tmp_path):
    """A file system gives the number of a removed folder to the next one: an open one keeps it."""
    path, times = tmp_path / "model", []
    replace(path, "old")

    def read_slowly():
        times.append(1)
        first = (path / NAMES[0]).read_text()
        if len(times) == 1:
            for content in ("new", "newer"):
                shutil.rmtree(path)
                path.mkdir()
                write(path, content)
        return [first, *read(path)]

    assert set(read_undisturbed([path], read_slowly)) == {"newer"}


def test_a_fault_of_a_folder_at_rest_is_told_at_once(tmp_path):
    times = []

    def fail():
        times.append(1)
        raise ModelFolderError("broken")

    (tmp_path / "model").mkdir()
    for path in (tmp_path / "model", tmp_path / "missing"):
        with pytest.raises(ModelFolderError, match="broken"):
            read_undisturbed([path], fail)
    assert len(times) == 2


def test_a_folder_that_never_rests_is_told(tmp_path):
    path = tmp_path / "model"
    path.mkdir()

    def replace_it():
        (tmp_path / "other").mkdir()
        path.rmdir()
        (tmp_path / "other").rename(path)

    with pytest.raises(ModelFolderError, match="replaced again and again"):
        read_undisturbed([path], replace_it)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_who_replaces_waits_for_a_reader_but_not_for_ever(tmp_path):
    path, done = tmp_path / "model", threading.Event()
    replace(path, "old")

    def read_slowly():
        thread.start()
        return [read(path), done.wait(0.2), read(path)]

    (tmp_path / "new").mkdir()
    write(tmp_path / "new", "new")

    def replace_now():
        replace_folder(path, tmp_path / "new")
        done.set()

    thread = threading.Thread(target=replace_now)
    first, was_replaced, second = read_undisturbed([path], read_slowly)
    assert not was_replaced
    assert set(first + second) == {"old"}
    thread.join()
    assert set(read(path)) == {"new"}
