"""What is printed: in any encoding, and without a terminal's commands from data."""

import io
import json
import os
import select
import subprocess
import sys
import time

import pytest
from rich.progress import Progress

from conftest import BRIEF, SMALL, write_pairs
from dragoman.characters import printed_streams
from dragoman.cli import main
from dragoman.commands.evaluate import write_evaluation
from dragoman.errors import DataError
from dragoman.evaluation.evaluation import evaluate_rows
from dragoman.evaluation.output_rows import Row
from dragoman.settings import EvaluationSettings
from dragoman.training.run_context import TextConsole

ESCAPES = "\x1b]0;x\x07\x9b31m\r"


def run_with(monkeypatch, encoding, *words):
    """Run the command line in this process; return its code, and what it wrote as bytes."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    code = main([str(word) for word in words])
    for stream in streams:
        stream.flush()
    return code, *(stream.buffer.getvalue() for stream in streams)


@pytest.fixture
def evaluations(tmp_path):
    """Two evaluations of rows with letters of several scripts, and escape sequences everywhere."""
    for name, output in (("a", "日"), ("b", f"ü{ESCAPES}")):
        rows = [
            Row(source=f"é{i}", features=(f"tag={ESCAPES}",), references=(f"ü{ESCAPES}",),
                hypothesis=output, file=f"{ESCAPES}.tsv", line=i + 1)
            for i in range(12)
        ]  # fmt: skip
        write_evaluation(tmp_path / name, evaluate_rows(rows, EvaluationSettings(resamples=100)))
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_text_is_printed_in_any_encoding_without_commands(evaluations, monkeypatch, encoding):
    code, out, _ = run_with(monkeypatch, encoding, "compare", *evaluations)
    assert code == 0
    shown = out.decode(encoding)
    letter = "\\xfc" if encoding == "ascii" else "ü"
    assert f"reference  {letter}\\u001b]0;x\\u0007\\u009b31m\\u000d" in shown
    assert not {*shown} & {*"\x1b\x07\x9b\r"}


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_data_are_utf_8_whatever_the_encoding_and_exact(evaluations, monkeypatch, encoding):
    code, out, _ = run_with(monkeypatch, encoding, "compare", *evaluations, "--json")
    assert code == 0
    [content] = json.loads(out.decode())
    assert content["different_rows"][0]["references"] == [f"ü{ESCAPES}"]


@pytest.mark.parametrize("words", [["inspect"], ["inspect", "--json"], ["fit", "--help"]])
def test_inspect_and_help_need_no_utf_8(tmp_path, monkeypatch, words):
    (tmp_path / "pairs.tsv").write_text("".join(f"日{i}\té{ESCAPES[:-1]}{i}\n" for i in range(40)))
    monkeypatch.chdir(tmp_path)
    try:
        code, out, _ = run_with(monkeypatch, "ascii", *words, "pairs.tsv")
    except SystemExit as end:
        code, out = end.code, b""
    assert code == 0
    assert b"\x1b" not in out


def test_names_and_options_in_errors_command_no_terminal(monkeypatch, tmp_path):
    code, _, err = run_with(monkeypatch, "utf-8", "inspect", f"{tmp_path}/{ESCAPES}.tsv")
    assert code == 2
    assert b"\\u001b" in err
    assert b"\x1b" not in err
    assert "\x1b" not in str(DataError(ESCAPES))


def test_a_console_shows_the_controls_of_texts_and_keeps_its_own(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with printed_streams():
        console = TextConsole(stderr=True, force_terminal=True, color_system="standard")
        console.print(f"[red]a[/red]{ESCAPES}", highlight=False)
        with Progress(console=console) as bar:
            bar.add_task(ESCAPES)
            print(ESCAPES, file=sys.stderr)
    shown = screen.getvalue()
    assert "\x1b[31ma\x1b[0m\\u001b]0;x" in shown
    assert "\x1b[?25l" in shown  # the bar hides the cursor
    assert "\x1b]" not in shown
    assert "\x9b" not in shown


def test_at_a_terminal_each_line_is_answered_at_once(trained):
    pty = pytest.importorskip("pty")
    main_side, side = pty.openpty()
    command = [sys.executable, "-m", "dragoman", "predict", str(trained[0])]
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side)
    os.close(side)
    seen = b""

    def wait_for(mark):
        nonlocal seen
        start, end_s = len(seen), time.monotonic() + 60
        while mark not in seen[start:]:
            assert time.monotonic() < end_s, seen
            if select.select([main_side], [], [], 0.2)[0]:
                seen += os.read(main_side, 4096)

    wait_for(b"> ")
    words = [*command, "--input", os.devnull]
    given = subprocess.run(words, stdin=main_side, capture_output=True, check=True)
    assert b"type a source" not in given.stderr
    for line, answer in ((b"abc\n", b"ABC\r\n> "), (b"\n", b"\r\n> "), (b"abd\n", b"ABD\r\n> ")):
        os.write(main_side, line)
        wait_for(answer)
    os.write(main_side, b"\x04")
    wait_for(b"the source is empty): line 2")
    assert process.wait(60) == 0
    os.close(main_side)
    assert b"type a source and Enter; Ctrl-D ends" in seen


def test_training_needs_no_module_or_signal_that_windows_lacks(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 60)
    words = ["fit", str(pairs), "--out", str(tmp_path / "model"), *SMALL, *BRIEF]
    code = (
        "import signal, sys; sys.modules['resource'] = None\n"
        "for name in ('SIGALRM', 'SIGHUP', 'SIGPIPE', 'setitimer', 'ITIMER_REAL'):\n"
        "    delattr(signal, name)\n"
        f"from dragoman.cli import main; sys.exit(main({words!r}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert found.returncode == 0, found.stderr.decode()
    assert (tmp_path / "model" / "model.safetensors").is_file()
