"""Commands on a real Ray cluster: two nodes on this machine, of which one is killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import make_words
from dragoman.cli import main
from dragoman.commands.predict import Job, read_journal, run_job
from dragoman.predictor import Predictor
from dragoman.settings import DecodingSettings, Settings

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    yield started
    started.shutdown()


@pytest.fixture
def start(cluster):
    """Give a function that starts `dragoman` on the cluster."""
    started = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, "-m", "dragoman", *map(str, words)],
            env={**os.environ, "RAY_ADDRESS": cluster.address}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def find_worker(node, part):
    """Return a worker of a node, and the file with `part` in its path that it has open."""
    raylet = node.all_processes["raylet"][0].process.pid
    for pid in map(int, Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()):
        with suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                if part in str(path := link.readlink()):
                    return pid, path
    return None


def wait_for(find, process):
    while not (found := find()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return found


def kill(cluster, node, pid):
    """Lose a machine: Ray's processes there, and a worker."""
    cluster.remove_node(node, allow_graceful=False)
    os.kill(pid, signal.SIGKILL)


def test_a_prediction_whose_node_is_killed_is_that_of_one_process(
    trained, cluster, start, tmp_path
):
    source, whole, output = (tmp_path / name for name in ("in.txt", "whole.jsonl", "out.jsonl"))
    source.write_text("".join(f"{word}\n" for word in make_words(2000)))
    settings = Settings(decoding=DecodingSettings(beam_size=10))
    run_job(Predictor.load(trained[0], settings, threads=1), Job(input=source, output=whole))
    second = cluster.add_node(**NODE)
    process = start(
        "predict", trained[0], "--input", source, "--output", output, "--on", "ray",
        "--workers", "2", "--decoding.beam_size", "10",
    )  # fmt: skip
    pid, part = wait_for(lambda: find_worker(second, "/out.jsonl.part-"), process)
    journal = part.with_name(f"{part.name}.journal")
    wait_for(journal.exists, process)
    os.kill(pid, signal.SIGSTOP)
    assert not read_journal(journal).state.is_complete  # it is killed in the middle
    kill(cluster, second, pid)
    printed, messages = process.communicate(timeout=200)
    assert process.returncode == 0, messages
    assert printed == ""
    assert "part 1/2 is done" in messages
    assert output.read_bytes() == whole.read_bytes()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["in.txt", "out.jsonl", "whole.jsonl"]


def test_an_error_of_a_worker_is_one_message(trained, start, tmp_path):
    words = [
        "predict",
        trained[0],
        "--output",
        tmp_path / "o.jsonl",
        "--on",
        "ray",
        "--workers",
        "1",
    ]
    for more, message in (
        (["--input", tmp_path / "none.txt"], "none.txt"),
        (["--input", tmp_path / "none.txt", "--threads", "64"], "a worker needs 64 processors"),
    ):
        process = start(*words, *more)
        _, messages = process.communicate(timeout=200)
        assert process.returncode == 2
        assert message in messages
        assert "Traceback" not in messages


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2"], "must be given together"),
        (["--on", "ray"], "must be given together"),
        (["--on", "ray", "--workers", "2"], "give --input and --output"),
        (["--on", "ray", "--workers", "2", "--output", "o"], "give --input and --output"),
    ],
)
def test_options_that_ray_cannot_follow_are_errors(words, message, capsys):
    assert main(["predict", "m", *words]) == 2
    assert message in capsys.readouterr().err


def test_without_a_cluster_it_is_said_what_to_do(capsys, monkeypatch):
    words = ["predict", "m", "--input", "i", "--output", "o", "--on", "ray", "--workers", "2"]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(words) == 2
    assert "no Ray cluster at 127.0.0.1:1 (RAY_ADDRESS): start one" in capsys.readouterr().err
