"""Commands on a real Ray cluster: two nodes on this machine, of which one is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import optuna
import pytest

from conftest import SMALL, make_words, write_pairs
from dragoman.cli import main
from dragoman.commands.predict import Job, read_journal, run_job
from dragoman.model_folder.folder import ModelFolder
from dragoman.predictor import Predictor
from dragoman.settings import DecodingSettings, Settings
from dragoman.training.checkpoints import list_checkpoints

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15: other tests would hold up the workers
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


def list_children(pid):
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for path in lists for word in path.read_text().split()]


def list_workers(node):
    """Return the processes that Ray has started on a node."""
    return list_children(node.all_processes["raylet"][0].process.pid)


def find_part(node):
    """Return a worker of a node, and the part that it has open."""
    for pid in list_workers(node):
        with suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                if "/out.jsonl.part-" in str(path := link.readlink()):
                    return pid, path
    return None


def find_rank(node):
    """Return a worker of a node, and the process that trains in it."""
    for pid in list_workers(node):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_Rank"):
                for child in list_children(pid):
                    return pid, child
    return None


def wait_for(find, process):
    while not (found := find()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return found


def kill(cluster, node, *pids):
    """Lose a machine: Ray's processes there, and a worker's."""
    cluster.remove_node(node, allow_graceful=False)
    for pid in pids:
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
    pid, part = wait_for(lambda: find_part(second), process)
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


def test_a_training_whose_node_is_killed_resumes_on_another_one(cluster, start, tmp_path):
    pairs, out = write_pairs(tmp_path / "pairs.tsv", 200), tmp_path / "model"
    words = [
        "fit", pairs, "--out", out, *SMALL, "--training.max_steps", "60", "--training.valid_every", "30",
        "--training.checkpoint_every", "5", "--optimization.warmup_steps", "0", "--data.cache", "none",
        "--evaluation.report", "none",
    ]  # fmt: skip
    second = cluster.add_node(**NODE)
    process = start(*words, "--on", "ray", "--training.devices", "2")
    worker, child = wait_for(lambda: find_rank(second), process)
    checkpoints = tmp_path / "model.training" / "checkpoints"
    wait_for(lambda: list_checkpoints(checkpoints), process)
    os.kill(child, signal.SIGSTOP)
    assert not out.exists()  # it is killed in the middle
    kill(cluster, second, worker, child)
    third = cluster.add_node(**NODE)
    _, messages = process.communicate(timeout=280)
    cluster.remove_node(third)
    assert process.returncode == 0, messages
    assert "a worker was lost; all start again" in messages
    assert "resum" in messages.partition("all start again")[2]
    folder = ModelFolder.read(out)
    assert folder.metrics["num_steps"] == 60
    assert folder.settings.training.num_nodes == 2


@pytest.mark.slow
def test_an_interrupted_training_says_how_to_resume_on_the_cluster(start, tmp_path):
    pairs, out = write_pairs(tmp_path / "pairs.tsv", 200), tmp_path / "model"
    process = start(
        "fit", pairs, "--out", out, *SMALL, "--training.max_steps", "100000", "--data.cache", "none",
        "--training.checkpoint_every", "5", "--on", "ray",
    )  # fmt: skip
    checkpoints = tmp_path / "model.training" / "checkpoints"
    wait_for(lambda: list_checkpoints(checkpoints), process)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=200)
    again = f"dragoman fit --out {out} --resume auto --on ray --training.devices 1"
    assert f"; to resume: {again}" in messages


def list_trials(out):
    return optuna.load_study(study_name="tune", storage=f"sqlite:///{out / 'study.db'}").trials


def tune_words(pairs, out, **options):
    (out.parent / "space.yaml").write_text(
        "optimization.learning_rate: {low: 0.001, high: 0.01, log: true}"
    )
    return [
        "tune", pairs, "--out", out, "--space", out.parent / "space.yaml", "--json", "--on", "ray",
        "--model.d_model", "32", "--model.num_encoder_layers", "1", "--model.num_decoder_layers", "1",
        "--model.dim_feedforward", "64", "--training.batch_tokens", "512", "--training.max_steps", "150",
        "--training.valid_every", "15", *(word for name, value in options.items()
        for word in (f"--{name}", str(value))),
    ]  # fmt: skip


def find_trial(out, node, number):
    """Return the worker of a node that trains a trial."""
    for pid in list_workers(node):
        with suppress(OSError):
            links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
            if str(out / "trials" / f"{number}.log") in links:
                return pid
    return None


@pytest.mark.slow
def test_a_search_repeats_the_trial_whose_node_is_killed(cluster, start, tmp_path):
    pairs, out = write_pairs(tmp_path / "pairs.tsv", 300), tmp_path / "tuned"
    second = cluster.add_node(**NODE)
    process = start(*tune_words(pairs, out, workers=2, trials=2))

    def find_second():
        """Return a trial on the second node, in the middle."""
        for number in range(2):
            pid = find_trial(out, second, number)
            if pid and list_trials(out)[number].intermediate_values:
                return number, pid
        return None

    number, pid = wait_for(find_second, process)
    os.kill(pid, signal.SIGSTOP)
    kill(cluster, second, pid)
    printed, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages
    assert f"trial {number}: the worker was lost" in messages
    found = json.loads(printed)
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 2
    cut = list_trials(out)[number]
    assert cut.state.name == "FAIL"
    assert any(
        one.params == cut.params and one.state.name == "COMPLETE" for one in list_trials(out)
    )
    assert sorted(path.suffix for path in (out / "trials").iterdir()) == [".log"] * 3
    assert found["best"]["score"] == min(trial["score"] for trial in found["trials"])


@pytest.mark.slow
def test_a_killed_search_continues_on_the_cluster_and_prunes(cluster, start, tmp_path):
    pairs, out = write_pairs(tmp_path / "pairs.tsv", 300), tmp_path / "tuned"
    words = tune_words(pairs, out, workers=1)
    process = start(*words, "--trials", "2")
    wait_for(lambda: find_trial(out, cluster.head_node, 1), process)
    process.kill()
    process.wait()
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{out / 'study.db'}")
    cut = study.trials[1]
    assert cut.state.name == "RUNNING"
    for _ in range(5):
        best = dict.fromkeys(range(10), -1.0)  # better than any
        study.add_trial(optuna.trial.create_trial(value=-1.0, intermediate_values=best))
    process = start(*words, "--trials", "7")
    _, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages
    after = list_trials(out)
    assert after[1].state.name == "FAIL"
    assert after[-1].params == cut.params
    assert after[-1].state.name == "PRUNED"
    assert len(after[-1].intermediate_values) == 2


@pytest.mark.slow
def test_an_interrupted_search_says_how_to_continue(cluster, start, tmp_path):
    pairs, out = write_pairs(tmp_path / "pairs.tsv", 300), tmp_path / "tuned"
    process = start(*tune_words(pairs, out, workers=1))
    wait_for(lambda: find_trial(out, cluster.head_node, 0), process)
    process.terminate()
    _, messages = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    assert messages.endswith("repeat the command to continue the search\n")


def test_what_the_cluster_cannot_do_is_one_message(trained, start, tmp_path):
    pairs, out = write_pairs(tmp_path / "pairs.tsv", 200), tmp_path / "o"
    tune = tune_words(pairs, tmp_path / "tuned", workers=64)
    predict = ["predict", trained[0], "--output", out, "--on", "ray", "--workers", "1", "--input"]
    fit = ["fit", pairs, "--out", out, "--on", "ray", "--training.devices"]
    for words, message in (
        ([*predict, tmp_path / "none.txt"], "none.txt"),  # the worker says it
        ([*predict, pairs, "--threads", "64"], "a worker needs 64 processors (--threads)"),
        ([*fit, "64"], "training.devices: 64, but the Ray cluster has"),
        ([*fit, "1", "--data.source", "text"], "text"),  # rank 0 says it
        (tune, "--workers: 64, but the Ray cluster has room for "),
    ):
        process = start(*words)
        _, messages = process.communicate(timeout=200)
        assert process.returncode == 2
        assert message in messages
        assert "Traceback" not in messages


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "m", "--workers", "2"], "must be given together"),
        (["predict", "m", "--on", "ray"], "must be given together"),
        (["tune", "p.tsv", "--on", "ray"], "must be given together"),
        (["tune", "p.tsv", "--workers", "2"], "must be given together"),
        (["predict", "m", "--on", "ray", "--workers", "2"], "give --input and --output"),
        (["fit", "--resume", "--on", "ray", "--training.num_nodes", "2"], "leave it out"),
        (["fit", "-", "--on", "ray"], "leave out --dry-run, --seeds, and standard input"),
    ],
)
def test_options_that_ray_cannot_follow_are_errors(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_without_a_cluster_it_is_said_what_to_do(capsys, monkeypatch):
    words = ["predict", "m", "--input", "i", "--output", "o", "--on", "ray", "--workers", "2"]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(words) == 2
    assert "no Ray cluster at 127.0.0.1:1 (RAY_ADDRESS): start one" in capsys.readouterr().err
