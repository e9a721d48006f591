"""Files and folders are replaced completely or not at all; leftovers of killed processes go."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from dragoman.errors import ModelFolderError
from dragoman.storage import (
    consistent_read,
    hold_lock,
    read_json,
    sha256,
    staged_file,
    staged_folder,
    sweep,
)

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


def names_in(folder):
    return sorted(one.name for one in folder.iterdir())


def test_a_staged_file_replaces_the_file_at_its_end(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with staged_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(ZeroDivisionError), staged_file(path) as temporary:
        temporary.write_text("newer")
        raise ZeroDivisionError
    assert path.read_text() == "new"
    assert names_in(tmp_path) == ["file"]


def test_a_staged_folder_replaces_the_folder_at_its_end(tmp_path):
    for content in ("old", "new", "newer"):
        with staged_folder(tmp_path / "model") as folder:
            write(folder, content)
            assert folder.parent == tmp_path
        assert read(tmp_path / "model") == content
        assert names_in(tmp_path) == ["model"]


def test_an_error_while_writing_changes_nothing(tmp_path):
    with staged_folder(tmp_path / "model") as folder:
        write(folder, "old")
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "model") as folder:
        write(folder, "new")
        raise ZeroDivisionError
    assert read(tmp_path / "model") == "old"
    assert names_in(tmp_path) == ["model"]


def test_parent_folders_are_created(tmp_path):
    with staged_folder(tmp_path / "x" / "y" / "model") as folder:
        write(folder, "new")
    assert read(tmp_path / "x" / "y" / "model") == "new"


def test_a_link_to_a_folder_stays_and_the_folder_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    write(tmp_path / "disk" / "model", "old")
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    with staged_folder(tmp_path / "model") as folder:
        write(folder, "new")
    assert (tmp_path / "model").is_symlink()
    assert read(tmp_path / "disk" / "model") == "new"
    assert names_in(tmp_path) == ["disk", "model"]
    assert names_in(tmp_path / "disk") == ["model"]


def test_a_file_at_the_place_of_a_folder_stays(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(OSError, match="it is a file"), staged_folder(tmp_path / "model") as folder:
        write(folder, "new")
    assert (tmp_path / "model").read_text() == "mine"
    assert names_in(tmp_path) == ["model"]


def test_if_the_second_rename_fails_the_old_folder_is_put_back(tmp_path, monkeypatch):
    write(tmp_path / "model", "old")
    rename = Path.rename

    def fail_once(self, target):
        if ".tmp-" in self.name:
            raise OSError(errno.EIO, "disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="disk"), staged_folder(tmp_path / "model") as folder:
        write(folder, "new")
    assert read(tmp_path / "model") == "old"
    assert names_in(tmp_path) == ["model"]


def test_only_our_own_temporary_names_are_swept(tmp_path):
    write(tmp_path / "model", "mine")
    others = [
        ".model.tmp-", ".model.tmp-12x", ".model.tmp-12-abc", ".model.tmp", ".model.old",
        "model.tmp-12", ".model2.tmp-12", ".model.tmp-12-0123456789", ".model.training",
        ".other.tmp-12-0123abcd", ".model.tmp-12-0123abcd.bak", ".model.new-12-0123abcd",
    ]  # fmt: skip
    for name in [*others, ".model.tmp-12-0123abcd", ".model.old-7-ffffffff"]:
        (tmp_path / name).mkdir()
    (tmp_path / ".model.tmp-13-0123abcd.lock").touch()
    (tmp_path / ".model.tmp-99-0123abcd").write_text("a file, just written")
    (tmp_path / ".model.tmp-97-0123abcd").write_text("an old file")
    os.utime(tmp_path / ".model.tmp-97-0123abcd", (1000, 1000))
    (tmp_path / ".model.tmp-98-0123abcd").symlink_to(tmp_path / "model")
    sweep(tmp_path / "model")
    kept = ["model", *others, ".model.tmp-98-0123abcd", ".model.tmp-99-0123abcd"]
    assert names_in(tmp_path) == sorted(kept)
    assert read(tmp_path / "model") == "mine"


def test_a_name_with_characters_of_patterns_is_taken_literally(tmp_path):
    for name in (".m[ab]del.tmp-1-0123abcd", ".madel.tmp-1-0123abcd"):
        (tmp_path / name).mkdir()
    sweep(tmp_path / "m[ab]del")
    assert names_in(tmp_path) == [".madel.tmp-1-0123abcd"]


def test_the_old_folder_is_put_back_if_its_writer_was_killed_between_two_renames(tmp_path):
    for number, content in enumerate(("older", "old")):
        copy = tmp_path / f".model.old-{number}-0123abcd"
        write(copy, content)
        os.utime(copy, (1000 + number, 1000 + number))
    write(tmp_path / ".model.tmp-5-0123abcd", "half")
    sweep(tmp_path / "model")
    assert read(tmp_path / "model") == "old"
    assert names_in(tmp_path) == ["model"]


def test_a_folder_that_is_being_written_is_not_swept(tmp_path):
    with staged_folder(tmp_path / "model") as folder:
        write(folder, "new")
        sweep(tmp_path / "model")
        assert read(folder) == "new"
    assert read(tmp_path / "model") == "new"


def test_nothing_to_sweep_is_no_error(tmp_path):
    sweep(tmp_path / "nowhere" / "model")
    sweep(tmp_path / "model")
    assert names_in(tmp_path) == []


AT_EVERY_MOMENT = """
import os, signal, sys
from pathlib import Path
from dragoman import storage
place, left = Path(sys.argv[1]), [0]

def watch(event, arguments):
    if left[0] and event.startswith(("open", "os.", "shutil.")):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
for moment in range(1, 1000):
    if (child := os.fork()) == 0:
        left[0] = moment
        with storage.staged_folder(place) as folder:
            (folder / "c").mkdir()
            for name in ("a", "b", "c/d", "c/e"):
                (folder / name).write_text(str(moment))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    storage.sweep(place)
    names = [str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()]
    print(moment, *{(place / name).read_text() for name in names}, sorted(names), os.listdir(place.parent))
    if status == 0:
        break
"""


def test_after_a_kill_at_any_file_operation_a_complete_folder_is_there(tmp_path):
    place = tmp_path / "model"
    write(place, "0")
    run = subprocess.run(
        [sys.executable, "-c", AT_EVERY_MOMENT, place], capture_output=True, text=True, check=True
    )
    lines, content = run.stdout.splitlines(), "0"
    assert len(lines) > 15
    for moment, line in enumerate(lines, start=1):
        found = line.split()[1]
        assert found in (content, str(moment))
        assert line == f"{moment} {found} {list(NAMES)} ['model']"
        content = found
    assert content == str(len(lines))


def test_a_folder_that_is_replaced_while_it_is_read_is_refused(tmp_path):
    place = tmp_path / "model"
    write(place, "old")
    with (
        pytest.raises(ModelFolderError, match="was replaced while being read: try again"),
        consistent_read(place),
        staged_folder(place) as folder,
    ):
        write(folder, "new")


def test_a_file_added_to_a_folder_while_it_is_read_is_no_replacement(tmp_path):
    place = tmp_path / "model"
    write(place, "old")
    with consistent_read(place), staged_file(place / "report.html") as temporary:
        temporary.write_text("report")


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path):
    lock = tmp_path / "lock"
    with hold_lock(lock):
        assert lock.exists()
        with pytest.raises(filelock.Timeout), hold_lock(lock):
            pass
    assert not lock.exists()
    with hold_lock(lock):
        pass


def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "file.json"
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
    with pytest.raises(ModelFolderError, match=r"missing: cannot be read: No such file"):
        read_json(tmp_path / "missing")
    for content in (b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ModelFolderError, match=r"file\.json: not valid JSON"):
            read_json(path)


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(tmp_path / "file").startswith("ba7816bf8f01cfea")
