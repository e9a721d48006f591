import signal
import subprocess
import sys

import pytest

from conftest import BRIEF, SMALL, quiet_console, write_pairs
from dragoman import read_settings
from dragoman.commands.fit import fit
from dragoman.commands.fit_setup import lock_folder
from dragoman.errors import ModelFolderError

HOLD = """
import sys
from pathlib import Path
from dragoman.commands.fit_setup import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def train(out):
    pairs = write_pairs(out.parent / "pairs.tsv", 200)
    return fit(pairs, out, read_settings(None, [*SMALL, *BRIEF]), console=quiet_console())


@pytest.mark.parametrize("name", ["model", "new/folder/model"])
def test_a_second_run_into_one_folder_is_refused_and_touches_nothing(tmp_path, name):
    out = tmp_path / name
    pairs = write_pairs(tmp_path / "pairs.tsv", 200)
    with lock_folder(out):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ModelFolderError, match="another process is training a model into"):
            fit(pairs, out, read_settings(None, [*SMALL, *BRIEF]), console=quiet_console())
        assert sorted(tmp_path.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.tsv"]


def test_a_killed_run_leaves_no_lock(tmp_path):
    out = tmp_path / "model"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(ModelFolderError, match="another process"), lock_folder(out):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    train(out)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".lock")]
