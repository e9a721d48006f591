"""Several processes that train one model: they learn as one does, stop together, and say why."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from conftest import BRIEF, SMALL, quiet_console, write_pairs
from dragoman import read_settings
from dragoman.commands.fit import fit
from dragoman.errors import SettingsError
from dragoman.model_folder.folder import ModelFolder
from dragoman.training.checkpoints import list_checkpoints
from dragoman.training.logs import read_curves
from dragoman.training.resume import find_resume_point

# No dropout: each rank has its own. Two micro-batches a step; some batches have a row or two.
WORDS = [
    *SMALL, *BRIEF, "--training.max_steps", "12", "--training.batch_tokens", "96", "--data.cache", "none",
    "--training.valid_every", "6", "--training.accumulate", "2", "--training.precision", "32-true",
    "--training.loggers", "none", "--evaluation.report", "none",
]  # fmt: skip
LONG = [*WORDS, "--training.max_steps", "100000", "--training.checkpoint_every", "2"]
TIMEOUT_S = 600  # for busy machines; a rank that waits for a dead one would wait for longer
pytestmark = pytest.mark.timeout(900)

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["dragoman.cli", "dragoman.commands.fit"])


def run_command(words, variables, folder, errors, prepare):
    """Be a rank: the command line, in `folder`, with these variables of the environment."""
    os.chdir(folder)
    os.environ.update(variables)
    sys.stderr = Path(errors).open("w", buffering=1)  # noqa: SIM115
    if prepare is not None:
        prepare()
    from dragoman.cli import main

    sys.exit(main(words))


def find_free_port(low=20_000):
    for port in range(low, low + 5_000):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError


class Started:
    """Ranks as torchrun starts them, or as srun does; each may be a machine of its own."""

    def __init__(
        self, words, count, tmp_path, *, machines=1, names=None, folders=None, prepare=None
    ):
        local, port = count // machines, find_free_port()
        self.errors = [tmp_path / f"errors-{rank}-{time.monotonic_ns()}" for rank in range(count)]
        self.processes = []
        for rank in range(count):
            variables = {
                "RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank % local,
                "LOCAL_WORLD_SIZE": local, "GROUP_RANK": rank // local,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            } if names is None else names(rank)  # fmt: skip
            process = CONTEXT.Process(
                target=run_command,
                args=(
                    ["fit", *map(str, words)],
                    {name: str(value) for name, value in variables.items()},
                    folders[rank] if folders else tmp_path,
                    self.errors[rank],
                    prepare if rank == count - 1 else None,
                ),
            )
            process.start()
            self.processes.append(process)

    def wait(self):
        """Return the exit codes, and what each rank has printed."""
        until_s = time.monotonic() + TIMEOUT_S
        for process in self.processes:
            process.join(max(0.0, until_s - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes, [path.read_text() for path in self.errors]


def wait_for(found, what):
    until_s = time.monotonic() + TIMEOUT_S
    while not found():
        assert time.monotonic() < until_s, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.tsv", 200)


def test_any_number_of_ranks_learns_the_same(pairs, tmp_path):
    alone = tmp_path / "alone"
    fit(pairs, alone, read_settings(None, WORDS), console=quiet_console())
    expected = read_curves(tmp_path / "alone.training")
    for count, machines in ((2, 2), (4, 1)):
        out = tmp_path / f"of-{count}"
        codes, printed = Started(
            [pairs, "--out", out, *WORDS], count, tmp_path, machines=machines
        ).wait()
        assert codes == [0] * count, printed
        assert "step 6: train_loss" in printed[0]
        assert printed[1:] == [""] * (count - 1)
        found = read_curves(tmp_path / f"of-{count}.training")
        for name in ("update_loss", "train_loss", "valid_loss", "valid_token_error_rate"):
            assert len(found[name]) == len(expected[name]) >= 2
            for one, other in zip(found[name], expected[name], strict=True):
                assert one == pytest.approx(other, rel=1e-4)
        assert ModelFolder.read(out).metrics["num_steps"] == 12


def test_ranks_without_a_row_validate_with_the_others(pairs, tmp_path):
    words = [*WORDS, "--training.batch_tokens", "6", "--training.accumulate", "1"]  # a row each
    codes, printed = Started([pairs, "--out", tmp_path / "model", *words], 2, tmp_path).wait()
    assert codes == [0, 0], printed
    assert "step 6: train_loss" in printed[0]


def count_exchanges():
    """Print which operations of torch.distributed the steps 3 to 6 make."""
    from dragoman.training.module import TransformerTraining

    plain, calls, profile = TransformerTraining.training_step, [], torch.profiler.profile()

    def step(module, batch, batch_idx):
        calls.append(1)
        if len(calls) == 5:
            profile.start()
        if len(calls) == 13:
            profile.stop()
            names = [one.name for one in profile.events() if one.name.startswith("c10d::")]
            print(sorted(Counter(names).items()), file=sys.stderr)
        return plain(module, batch, batch_idx)

    TransformerTraining.training_step = step


def test_a_step_makes_one_exchange_beside_that_of_the_gradients(pairs, tmp_path):
    words = [*WORDS, "--training.valid_every", "100", "--training.max_steps", "8"]
    started = Started(
        [pairs, "--out", tmp_path / "model", *words], 2, tmp_path, prepare=count_exchanges
    )
    codes, printed = started.wait()
    assert codes == [0, 0], printed
    assert printed[1] == "[('c10d::allgather_', 4), ('c10d::allreduce_', 4)]\n"


def test_a_killed_rank_ends_the_others_and_another_number_of_ranks_resumes(pairs, tmp_path):
    out, folder = tmp_path / "model", tmp_path / "model.training"
    command = [sys.executable, "-m", "dragoman", "fit", pairs, "--out", out, *LONG]
    command += ["--training.devices", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: list_checkpoints(folder / "checkpoints"), "no checkpoint")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        [child] = [
            int(one)
            for one in children
            if b"end_with_parent" in Path(f"/proc/{one}/cmdline").read_bytes()
        ]
        os.kill(child, signal.SIGKILL)
        _, printed = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2
    assert printed.count("dragoman:") == 1
    assert (
        f"dragoman: rank 1 ended by SIGKILL; to resume: dragoman fit --out {out} --resume auto"
        in printed
    )
    point = find_resume_point(folder, [])
    of_ranks = [
        one["random"]["torch"] for one in point.checkpoint["callbacks"]["RankStates"]["ranks"]
    ]
    assert not torch.equal(*of_ranks)  # each has its own dropout
    done = point.step
    console = quiet_console()
    less = ["--training.devices", "1", "--training.max_steps", str(done + 2)]
    fit((), out, read_settings(None, less), resume="must", console=console)
    assert "ranks 2, now 1" in console.file.getvalue()
    assert "will not be bit-identical" in console.file.getvalue()
    assert ModelFolder.read(out).metrics["num_steps"] == done + 2


def test_slurm_gets_a_checkpoint_and_its_job_back(pairs, tmp_path):
    out, port = tmp_path / "model", find_free_port(15_000)
    bin_, calls = tmp_path / "bin", tmp_path / "calls"
    bin_.mkdir()
    (bin_ / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (bin_ / "scontrol").chmod(0o755)
    job = f"7{port - 15_000:04}"

    def names(rank):
        return {
            "SLURM_JOB_ID": job, "SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_NUM_NODES": 1,
            "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": rank, "SLURM_LOCALID": rank,
            "SLURM_NODEID": 0, "PATH": f"{bin_}:{os.environ['PATH']}",
        }  # fmt: skip

    words = [pairs, "--out", out, "--resume", "auto"]
    started = Started([*words, *LONG], 2, tmp_path, names=names)
    wait_for(lambda: list_checkpoints(tmp_path / "model.training" / "checkpoints"), "no checkpoint")
    os.kill(started.processes[1].pid, signal.SIGUSR1)
    codes, printed = started.wait()
    assert codes == [128 + signal.SIGUSR1] * 2, printed
    assert calls.read_text() == f"requeue {job}\n"
    assert f"--resume auto; job {job} is requeued" in printed[0]
    assert printed[1] == ""
    done = find_resume_point(tmp_path / "model.training", []).step
    assert f"stopped after step {done:,}" in printed[0]
    last = ["--training.max_steps", done + 2]
    codes, printed = Started([*words, *last], 2, tmp_path, names=names).wait()
    assert codes == [0, 0], printed
    assert f"resumed after step {done:,}" in printed[0]
    assert "bit-identical" not in printed[0]


@pytest.mark.slow
def test_a_notebook_trains_on_several_devices(tmp_path):
    code = """if True:
        import sys
        sys.ps1 = ">>> "  # as in a notebook
        from dragoman import fit
        from conftest import make_words, quiet_console
        from dragoman import read_settings
        rows = [(word, word.upper()) for word in make_words(200)]
        settings = read_settings(None, sys.argv[2:])
        model = fit(rows, sys.argv[1], settings, console=quiet_console())
        print(len(model.predict(["abc"])), model.settings.training.devices)
    """
    tests = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, tmp_path / "model", *WORDS, "--training.devices", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, env=tests, timeout=TIMEOUT_S)
    assert (ended.stdout, ended.returncode) == ("1 2\n", 0), ended.stderr


def take_other_version():
    folder = Path.cwd() / "other" / "dragoman-9.9.9.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: dragoman\nVersion: 9.9.9\n")
    sys.path.insert(0, str(folder.parent))


def test_a_rank_with_another_version_is_named(pairs, tmp_path):
    words = [pairs, "--out", tmp_path / "model", *WORDS]
    codes, printed = Started(words, 2, tmp_path, prepare=take_other_version).wait()
    assert codes == [2, 2]
    assert "dragoman: rank 1: dragoman 9.9.9, but rank 0 has 0.1.0" in printed[0]
    assert printed[1] == ""
    assert not (tmp_path / "model.training").exists()


def test_a_machine_with_other_data_is_named(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, count in zip(folders, (200, 201), strict=True):
        folder.mkdir()
        write_pairs(folder / "pairs.tsv", count)
    words = ["pairs.tsv", "--out", tmp_path / "model", *WORDS]
    codes, printed = Started(words, 2, tmp_path, machines=2, folders=folders).wait()
    assert codes == [2, 2]
    assert (
        "dragoman: rank 1: other data than rank 0, from pairs.tsv on; give all machines"
        in printed[0]
    )
    assert printed[1] == ""
    assert not (tmp_path / "model.training").exists()


def test_an_error_of_one_rank_is_said_once_and_touches_nothing(pairs, tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    (out / "kept").write_text("")
    codes, printed = Started([pairs, "--out", out, *WORDS], 2, tmp_path).wait()
    assert codes == [2, 2]
    assert printed == [printed[0], ""]
    assert printed[0].endswith("which --overwrite would replace; choose another --out\n")
    assert [*out.iterdir()] == [out / "kept"]


def test_a_missing_file_is_said_once(tmp_path):
    codes, printed = Started(["none.tsv", "--out", tmp_path / "model", *WORDS], 2, tmp_path).wait()
    assert codes == [2, 2]
    assert printed == [printed[0], ""]
    assert "dragoman: none.tsv: " in printed[0]


def test_the_death_of_the_first_rank_is_said_by_another(pairs, tmp_path):
    started = Started([pairs, "--out", tmp_path / "model", *LONG], 2, tmp_path)
    wait_for(lambda: list_checkpoints(tmp_path / "model.training" / "checkpoints"), "no checkpoint")
    started.processes[0].kill()
    codes, printed = started.wait()
    assert codes == [-signal.SIGKILL, 2]
    assert printed[1].startswith("dragoman: rank 1: another rank has ended")
    assert "--resume auto" in printed[1]


def test_a_port_in_use_is_named(pairs, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**variables, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SettingsError, match=f"MASTER_PORT {port}: .*in use.* a free one"):
            fit(pairs, tmp_path / "model", console=quiet_console())
    assert not (tmp_path / "model.training").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("devices", "training.devices: 999, but this machine has .* processor cores"),
        ("num_nodes", "training.num_nodes: 999, but this process is alone; .* torchrun"),
    ],
)
def test_more_than_there_are_is_refused(pairs, tmp_path, word, message):
    settings = read_settings(None, [f"--training.{word}", "999", "--training.accelerator", "cpu"])
    with pytest.raises(SettingsError, match=message):
        fit(pairs, tmp_path / "model", settings, console=quiet_console())
    assert not (tmp_path / "model.training").exists()


def wait_less():
    from dragoman.training import ranks

    ranks._JOIN = timedelta(seconds=20)


@pytest.mark.slow
def test_a_rank_that_never_starts_is_said_once(pairs, tmp_path):
    port = find_free_port()

    def name(rank):
        return {
            "RANK": rank, "WORLD_SIZE": 3, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 3,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip

    words = [pairs, "--out", tmp_path / "model", *WORDS]
    found = [
        Started(words, 1, tmp_path, names=lambda _, rank=rank: name(rank), prepare=wait_less)
        for rank in (0, 1)
    ]
    (codes, printed), (others, silent) = (one.wait() for one in found)
    assert codes == others == [2], (printed, silent)
    assert printed[0].count("dragoman:") == 1
    assert "2/3 clients joined" in printed[0]
    assert "check that all processes have started" in printed[0]
    assert silent == [""]


@pytest.mark.slow
def test_ranks_with_a_time_limit_take_the_steps_of_rank_0(pairs, tmp_path):
    limited = [*WORDS[: WORDS.index("--training.max_steps")], "--evaluation.report", "none"]
    words = [pairs, "--out", tmp_path / "model", *limited, "--max-time", "60s"]
    codes, printed = Started(words, 2, tmp_path).wait()
    assert codes == [0, 0], printed
    assert "time limit: " in printed[0]
    folder = ModelFolder.read(tmp_path / "model")
    assert 0 < folder.metrics["num_steps"] <= folder.settings.training.max_steps
    assert printed[1] == ""
