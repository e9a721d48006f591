"""Signals, time limits and kills: the run keeps its work, and can be resumed."""

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from conftest import quiet_console, write_pairs
from dragoman import read_settings
from dragoman.cli import main
from dragoman.commands.fit import fit
from dragoman.errors import Stopped
from dragoman.training import checkpoints
from dragoman.training.checkpoints import list_checkpoints, read_checkpoint
from dragoman.training.graceful_stop import SignalHandler
from dragoman.training.module import TransformerTraining
from dragoman.training.run_context import StartTimer
from processes import start_until
from runs import WORDS, results_of, settings

LONG = ["--training.max_steps", "120", "--training.valid_every", "20", "--training.patience", "0"]


@pytest.fixture(autouse=True)
def takes_signals():
    """A run leaves ignored signals alone, and under nohup some are ignored: make them default."""
    before = {
        number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.tsv", 400)


@pytest.fixture(scope="module")
def whole(pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "model"
    fit(pairs, out, settings("--training.checkpoint_every", "100"), console=quiet_console())
    return results_of(out)


def send_at(monkeypatch, name, place, numbers):
    """Send signals to this process at the given call of the module's method `name`."""
    calls, plain = [], getattr(TransformerTraining, name)

    def step(module, batch, batch_idx):
        calls.append(1)
        for number in numbers if len(calls) == place else ():
            os.kill(os.getpid(), number)
        return plain(module, batch, batch_idx)

    monkeypatch.setattr(TransformerTraining, name, step)


# Two micro-batches per step, 5 steps per epoch, a validation of one batch every 4 steps.
MOMENTS = [
    ("training_step", 1, "SIGTERM"), ("training_step", 5, "SIGTERM"), ("training_step", 6, "SIGHUP SIGHUP"),
    ("training_step", 8, "SIGTERM"), ("training_step", 10, "SIGTERM"), ("training_step", 27, "SIGINT"),
    ("validation_step", 1, "SIGTERM"), ("validation_step", 2, "SIGTERM"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "place", "sent"), MOMENTS)
def test_a_signal_at_any_moment_loses_no_step(
    monkeypatch, pairs, whole, tmp_path, name, place, sent
):
    out, rare = tmp_path / "model", settings("--training.checkpoint_every", "100")
    with monkeypatch.context() as patch:
        send_at(patch, name, place, [signal.Signals[one] for one in sent.split()])
        first = sent.split()[0]
        with pytest.raises(Stopped, match=rf"{first}: stopped after step \d+; to resume") as stop:
            fit(pairs, out, rare, console=quiet_console())
    assert stop.value.exit_code == 128 + signal.Signals[first]
    done = -(-place // 2) if name == "training_step" else 4 * place
    assert (
        list_checkpoints(tmp_path / "model.training" / "checkpoints")[0].name == f"step-{done}.ckpt"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.training"]
    fit((), out, resume="must", console=quiet_console())
    assert results_of(out) == whole


def test_a_second_signal_stops_at_once_and_keeps_the_last_checkpoint(
    monkeypatch, pairs, whole, tmp_path
):
    out = tmp_path / "model"
    send_at(monkeypatch, "training_step", 20, [signal.SIGINT, signal.SIGINT])
    every = settings("--training.checkpoint_every", "3")
    with pytest.raises(Stopped, match="SIGINT: stopped; to resume") as stop:
        fit(pairs, out, every, console=quiet_console())
    assert stop.value.exit_code == 130
    names = [path.name for path in list_checkpoints(tmp_path / "model.training" / "checkpoints")]
    assert names[0] == "step-9.ckpt"
    fit((), out, resume="must", console=quiet_console())
    assert results_of(out) == whole
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_stopped_by_its_time_limit_can_be_resumed(monkeypatch, pairs, whole, tmp_path):
    out = tmp_path / "model"
    brief = settings("--training.checkpoint_every", "100", "--training.max_minutes", "1e-6")
    console = quiet_console()
    fit(pairs, out, brief, console=console)
    assert "training ends after step 1 of 14: the time limit" in console.file.getvalue()
    [newest, *_] = list_checkpoints(tmp_path / "model.training" / "checkpoints")
    assert newest.name == "step-1.ckpt"
    assert (out / "model.safetensors").is_file()
    free = read_settings(None, ["--training.max_minutes", "0"])
    fit((), out, free, resume="must", console=quiet_console())
    weights, curves, _ = results_of(out)
    assert weights == whole[0]
    assert curves["train_loss"][-1] == whole[1]["train_loss"][-1]


def test_the_time_limit_counts_from_the_start_of_the_run(pairs, tmp_path):
    limited = settings("--training.max_minutes", "30")
    timer = StartTimer(age_s=1800.0)  # reading has taken all of it
    console = quiet_console()
    fit(pairs, tmp_path / "model", limited, console=console, timer=timer)
    assert "training.max_steps is set, so" in console.file.getvalue()
    assert json.loads((tmp_path / "model" / "metrics.json").read_text())["num_steps"] == 1


def test_a_failed_checkpoint_is_reported_and_the_others_stay(monkeypatch, pairs, whole, tmp_path):
    """As on a full disk: at two steps, no file may grow beyond some bytes."""
    import resource

    out, console = tmp_path / "model", quiet_console()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    plain, steps = checkpoints.Checkpoints.save, []

    def save(callback, trainer, *, is_best=False):
        full = trainer.global_step in (9, 10)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if full else before[0], before[1]))
        is_written = plain(callback, trainer, is_best=is_best)
        folder = tmp_path / "model.training" / "checkpoints"
        steps.append(next(path.name for path in list_checkpoints(folder)))
        for path in folder.iterdir():
            read_checkpoint(path)
        return is_written

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save)
    try:
        fit(pairs, out, settings("--training.checkpoint_every", "1"), console=console)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    output = console.file.getvalue()
    assert "warning: step 9: no checkpoint" in output
    assert "cannot be written: File too large; training continues" in output
    assert steps[8:11] == ["step-8.ckpt", "step-8.ckpt", "step-11.ckpt"]
    assert results_of(out) == whole


def test_a_deleted_checkpoint_folder_is_created_again(monkeypatch, pairs, whole, tmp_path):
    out = tmp_path / "model"
    plain = TransformerTraining.on_train_start

    def vanish(module):
        shutil.rmtree(tmp_path / "model.training" / "checkpoints", ignore_errors=True)
        plain(module)

    monkeypatch.setattr(TransformerTraining, "on_train_start", vanish)
    fit(pairs, out, settings(), console=quiet_console())
    assert list_checkpoints(tmp_path / "model.training" / "checkpoints")
    assert results_of(out) == whole


def words_of(pairs, out, *more):
    return ["fit", pairs, "--out", out, *WORDS, *LONG, *more, "--resume", "auto"]


def finish(pairs, out, *more):
    assert main([*map(str, words_of(pairs, out, *more))]) == 0


@pytest.fixture(scope="module")
def long_whole(pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("long") / "model"
    fit(pairs, out, settings(*LONG), console=quiet_console())
    return results_of(out)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_the_command_stops_at_its_step_with_the_exit_code_of_the_signal(
    pairs, long_whole, tmp_path, number
):
    out = tmp_path / "model"
    process = start_until("step-20.ckpt", words_of(pairs, out))
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    _, output = process.communicate()
    assert process.returncode == 128 + number, output
    assert f"to resume: dragoman fit --out {out} --resume auto" in output
    assert [path.name for path in tmp_path.iterdir()] == ["model.training"]
    [newest, *_] = list_checkpoints(tmp_path / "model.training" / "checkpoints")
    assert newest.name in ("step-20.ckpt", "step-21.ckpt")
    finish(pairs, out)
    assert results_of(out) == long_whole


def test_a_broken_pipe_ends_the_training_with_an_exit_code(pairs, tmp_path):
    process = start_until("step-20.ckpt", words_of(pairs, tmp_path / "model"))
    process.stderr.close()
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 128 + signal.SIGPIPE
    assert not (tmp_path / "model").exists()
    assert list_checkpoints(tmp_path / "model.training" / "checkpoints")


@pytest.mark.slow
def test_a_lost_terminal_loses_no_step(pairs, long_whole, tmp_path):
    try:
        ours, theirs = pty.openpty()
    except OSError as error:  # as in a container without /dev/pts
        pytest.skip(f"no pseudo-terminal here: {error}")
    out, folder = tmp_path / "model", tmp_path / "model.training" / "checkpoints"
    process = start_until(
        "best.ckpt", words_of(pairs, out, "--training.checkpoint_every", "100"),
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    process.send_signal(signal.SIGHUP)
    os.close(ours)
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 128 + signal.SIGHUP
    assert list_checkpoints(folder)[0].name.startswith("step-")  # none was due
    finish(pairs, out)
    assert results_of(out) == long_whole


def test_a_signal_is_handled_even_if_its_message_cannot_be_printed(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    nobody = os.fdopen(writer, "w")
    with Path(os.devnull).open("w") as nowhere:
        monkeypatch.setattr(sys, "stdout", nowhere)  # rich closes it
        watch = SignalHandler(Console(file=nobody))
        watch.is_training = True
        watch.install()
        os.kill(os.getpid(), signal.SIGINT)
        watch.restore()
    assert watch.received == signal.SIGINT
    with suppress(BrokenPipeError):
        nobody.close()


def test_a_killed_run_resumes_and_leaves_no_temporary_files(pairs, long_whole, tmp_path):
    """reliability/kill.py is the full test, with a hundred kills at any moment."""
    out, every = tmp_path / "model", ("--training.checkpoint_every", "5")
    for name in ("step-5.ckpt", "best.ckpt", "step-60.ckpt"):
        process = start_until(name, words_of(pairs, out, *every))
        process.kill()
        process.communicate()
        for path in list_checkpoints(tmp_path / "model.training" / "checkpoints"):
            read_checkpoint(path)
    finish(pairs, out, *every)
    weights, curves, samples = results_of(out)
    assert weights == long_whole[0]
    assert samples == long_whole[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.training"]
    left = [path.name for path in (tmp_path / "model.training" / "checkpoints").iterdir()]
    assert all(name.endswith(".ckpt") for name in left)
    assert not list((tmp_path / "model.training").rglob(".*"))
    assert curves["valid_loss"] == long_whole[1]["valid_loss"]


def test_out_of_memory_names_the_batch_and_the_setting_to_lower(pairs, tmp_path):
    """The address space is too small for the large batch."""
    out, rows = tmp_path / "model", "".join(f"{'a' * 400}\t{'b' * 400}\n" for _ in range(900))
    (tmp_path / "long.tsv").write_text(rows + pairs.read_text() * 3)
    code = (
        "import resource, sys, torch\n"
        "from dragoman.cli import main\n"
        "import dragoman.commands.fit\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 28), -1))\n"
        "sys.exit(main())"
    )
    words = [
        *WORDS, "--training.batch_tokens", "400000", "--training.accumulate", "1", "--model.d_model",
        "512", "--model.dim_feedforward", "2048", "--training.max_steps", "4",
    ]  # fmt: skip
    command = [sys.executable, "-c", code, "fit", str(tmp_path / "long.tsv"), "--out", str(out)]
    # Without an allocator that reserves far more than it uses, and not in every version.
    found = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )  # fmt: skip
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    output = found.stderr.splitlines()[-1]
    assert "out of memory on a training batch of" in output
    assert "lower training.batch_tokens (now 400,000; try 200000" in output
