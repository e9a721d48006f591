"""Commands that stop at a file operation: no test depends on when a signal or a pipe's end arrives."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_CODE = """
import os, signal, sys
name, count, *words = sys.argv[1:]
left = [int(count)]

def watch(event, arguments):
    if event == "os.rename" and os.path.basename(os.fsdecode(arguments[1])) == name:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGSTOP)

sys.addaudithook(watch)
sys.argv[1:] = words
from dragoman.cli import main
sys.exit(main())
"""


def start_until(
    name: str, words: list[str | Path], count: int = 1, **options: Any
) -> "subprocess.Popen[str]":
    """Start `dragoman` with `words`; return it stopped, before the `count`-th file that gets the
    name `name` by a rename. SIGCONT lets it go on."""
    command = [sys.executable, "-c", _CODE, name, str(count), *map(str, words)]
    process = subprocess.Popen(command, text=True, **{"stderr": subprocess.PIPE, **options})
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"it ended with {status}"
    return process
