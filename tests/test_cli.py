"""The command line: real files; real processes where it matters what a process does."""

import contextlib
import gzip
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

import pytest
import torch

from conftest import BRIEF, SMALL, make_words, write_pairs
from dragoman.cli import COMMANDS, _preparing, main
from dragoman.cli_options import ENGINES, QUANTIZATIONS, read_command_line
from dragoman.configuration import flatten_settings, read_settings
from dragoman.data.run_data import RunData
from dragoman.engines.engine import Quantization
from dragoman.engines.load import EngineName
from dragoman.errors import DataError, SettingsError
from dragoman.presets import choose_settings
from dragoman.settings import Settings

WORDS = make_words(20, seed=9)


def run(*words, given: bytes = b"", cwd=None):
    """Run the command line in this process, which has the libraries loaded; its streams are files."""
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("stdin", "stdout", "stderr"):
            file = io.TextIOWrapper(tempfile.TemporaryFile(), encoding="utf-8")  # noqa: SIM115
            patch.setattr(sys, name, stack.enter_context(file))
        sys.stdin.buffer.write(given)
        sys.stdin.buffer.seek(0)
        stack.enter_context(contextlib.chdir(cwd or "."))
        try:
            code = main([*map(str, words)])
        except SystemExit as end:
            code = end.code
        texts = []
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            stream.seek(0)
            texts.append(stream.buffer.read())
    return subprocess.CompletedProcess(words, code, *texts)


def fails(*words, given: bytes = b"", cwd=None) -> str:
    """Run, expect an error that the user can fix, and return its one message."""
    found = run(*words, given=given, cwd=cwd)
    message = found.stderr.decode()
    assert found.returncode == 2, message
    assert "Traceback" not in message
    assert found.stdout == b""
    return message


def test_predict_pipes_lines_to_lines(trained):
    folder, model = trained
    for words in ([], ["--input", "-"]):
        found = subprocess.run(
            [sys.executable, "-m", "dragoman", "predict", folder, *words],
            input="".join(f"{w}\n" for w in WORDS).encode(), capture_output=True, check=True,
        )  # fmt: skip
        assert found.stdout.decode().splitlines() == model.predict(WORDS)
        assert found.stderr == b""


def test_predict_reads_and_writes_files_and_reports_invalid_rows(trained, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"abc\n\n\xff\nxyz\nabd\n")
    found = run(
        "predict", trained[0], "--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl"
    )
    assert found.returncode == 0
    assert found.stdout == b""
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["text"] == "ABC"
    assert rows[0]["is_complete"] is True
    assert "empty" in rows[1]["error"]
    assert "UTF-8" in rows[2]["error"]
    assert rows[3]["num_unknown"] == 3
    message = found.stderr.decode()
    assert "1 rows with tokens that the model has never seen: line 4" in message
    assert "line 2" in message
    assert "line 3" in message


def test_truncated_outputs_are_marked_and_reported(trained):
    words = ["--decoding.max_length_extra", "1", "--decoding.max_length_ratio", "0"]
    found = run("predict", trained[0], *words, given=b"abc\n")
    assert found.stdout == b"A [truncated]\n"
    assert b"1 rows truncated at the maximum length" in found.stderr


def test_predict_ends_quietly_when_the_pipe_is_closed(trained):
    predict = f"{sys.executable} -m dragoman predict {trained[0]}"
    command = f"yes abc | {predict} | head -1; exit ${{PIPESTATUS[1]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, check=False)
    assert found.stdout == b"ABC\n"
    assert found.returncode == 128 + signal.SIGPIPE
    assert b"Traceback" not in found.stderr


def test_short_output_into_a_closed_pipe_is_not_an_exception(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 20)
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    found = subprocess.run(
        [sys.executable, "-m", "dragoman", "inspect", pairs, "--json"],
        stdout=writer, stderr=subprocess.PIPE, check=False, env=buffered,
    )  # fmt: skip
    os.close(writer)
    assert found.returncode == 128 + signal.SIGPIPE
    assert b"Exception" not in found.stderr


def test_evaluate_prints_scores_as_a_table_or_as_json(trained, tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("source,target\n" + "".join(f"{w},{w.upper()}\n" for w in WORDS))
    out = ["--out", tmp_path / "words"]
    content = json.loads(run("evaluate", trained[0], pairs, "--json", *out).stdout)
    scores = content["scores"]
    assert scores["rows"] == len(WORDS)
    assert scores["exact_match"] > 80
    assert json.loads((tmp_path / "words" / "scores.json").read_text())["scores"] == scores
    report = ["--report", tmp_path / "report.html"]
    found = run("evaluate", trained[0], pairs, *out, *report)
    table = found.stdout.decode()
    assert f"exact match  {scores['exact_match']:>7.2f}  [" in table
    assert scores["chrf_signature"] in table
    assert "</html>" in (tmp_path / "report.html").read_text()
    assert f"written: {tmp_path / 'report.html'}" in found.stderr.decode()


def test_evaluate_writes_into_the_model_folder_and_calibrates_it(trained, tmp_path):
    model = shutil.copytree(trained[0], tmp_path / "model")
    pairs = tmp_path / "dev.tsv"
    pairs.write_text("".join(f"{w}\t{w if i % 2 else w.upper()}\n" for i, w in enumerate(WORDS)))
    found = run("evaluate", model, pairs, "--calibrate")
    assert found.returncode == 0, found.stderr.decode()
    assert len((model / "evaluation" / "dev" / "rows.jsonl").read_text().splitlines()) == 20
    calibration = json.loads((model / "calibration.json").read_text())
    assert calibration["rows"] == 20
    assert calibration["pairs"] == [str(pairs)]
    [line] = run("predict", model, "--jsonl", given=b"abc\n").stdout.splitlines()
    assert 0.3 < json.loads(line)["confidence"] < 0.7  # half of the outputs are wrong now


def test_outputs_of_any_system_are_evaluated_and_compared(tmp_path):
    lines = [f"the cat sat on mat {i}" for i in range(30)]
    files = {"ref": lines, "good": lines, "bad": [line.replace("cat", "dog") for line in lines]}
    for name, texts in files.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{text}\n" for text in texts))
    given = ["--references", "ref.txt", "--evaluation.resamples", "100"]
    for name in ("good", "bad"):
        found = run("evaluate", "--hypotheses", f"{name}.txt", *given, "--out", name, cwd=tmp_path)
        assert found.returncode == 0, found.stderr.decode()
        assert ("30 x 'cat' -> 'dog'" in found.stdout.decode()) == (name == "bad")
    words = ["compare", "bad", "good"]
    message = run(*words, cwd=tmp_path).stdout.decode()
    assert "good against bad: 30 rows" in message
    assert "better" in message
    [content] = json.loads(run(*words, "--json", "--rows", "3", cwd=tmp_path).stdout)
    assert content["scores"]["exact_match"]["difference"] == 100.0
    assert len(content["different_rows"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate"], "give MODEL and PAIRS"),
        (["evaluate", "--hypotheses", "x.txt"], "needs --references"),
        (["evaluate", "--hypotheses", "x.txt", "--references", "y.txt"], "x.txt: there is no such"),
        (["evaluate", "model", "p.tsv", "--references", "y.txt"], "are for --hypotheses"),
        (["compare", "a"], "give two runs or more"),
        (["compare", "a", "b"], "a: expected a model folder"),
    ],
)
def test_what_cannot_be_evaluated_or_compared_is_an_error(words, message, tmp_path):
    assert message in fails(*words, cwd=tmp_path)


def test_fit_writes_a_model_that_predicts(tmp_path):
    with gzip.open(tmp_path / "pairs.tsv.gz", "wt") as file:
        file.writelines(f"{w}\t{w.upper()}\n" for w in make_words(200))
    config = tmp_path / "settings.yaml"
    config.write_text("training: {max_steps: 5, valid_every: 2}\n")
    found = run("fit", "pairs.tsv.gz", "--config", config, "--model.d_model", "32", cwd=tmp_path)
    assert found.returncode == 0, found.stderr.decode()
    assert found.stdout == b""
    message = found.stderr.decode()
    for part in ("preset tiny", "exact match", "precision:"):
        assert part in message
    [next_line] = [line for line in message.splitlines() if line.startswith("next: ")]
    command = next_line.removeprefix("next: ")
    followed = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=120, check=True
    )
    assert len(followed.stdout.splitlines()) == 1


@pytest.mark.parametrize("command", [["--help"], ["fit", "--help"], ["predict", "--help"]])
def test_help_lists_options_and_settings(command):
    found = run(*command)
    assert found.returncode == 0
    assert b"dragoman" in found.stdout
    assert (b"NAME in the YAML file of --config" in found.stdout) == (command[0] == "fit")
    if command[0] == "fit":
        assert b"--model.d_model" in found.stdout
        assert b"Peak learning rate of AdamW. [0.001]" in found.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_short_help_lists_the_common_settings_and_all_every_one(name, capsys):
    def helped(*words):
        with pytest.raises(SystemExit) as end:
            main([name, *words])
        text = capsys.readouterr().out
        assert end.value.code == 0
        assert text.index("\nexamples:") < text.index("\noptions:")
        return text, set(re.findall(r"^  --([\w.]+)(?: \(.*\))?$", text, re.MULTILINE)) & every

    every, command = flatten_settings(Settings()).keys(), COMMANDS[name]
    taken = {setting for setting in every if command.takes(setting)} - {"version"}
    short, listed = helped("--help")
    assert {*command.common} <= every
    assert listed == ({*command.common} & taken or taken)
    assert (f"\nall {len(taken)} settings: dragoman {name} --help all\n" in short) == (
        listed < taken
    )
    for words in (["--help", "all"], ["--help=all"], ["pairs.tsv", "-h", "all"]):
        assert helped(*words)[1] == taken
    assert helped("--help", "pairs.tsv")[0] == short


def complete(line: str, folder: Path) -> list[str]:
    """Return what the shell is offered for Tab at the end of `line`."""
    typed = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1"}
    command = f"{shlex.quote(sys.executable)} -m dragoman 8>&1 9>&2 1>/dev/null"
    found = subprocess.run(
        ["bash", "-c", command], env=os.environ | typed, cwd=folder, capture_output=True,
        timeout=120, check=True,
    )  # fmt: skip
    return [word.strip() for word in found.stdout.decode().split("\v")]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dragoman ", [*COMMANDS]),
        ("dragoman fit ", ["pairs.tsv"]),
        ("dragoman fit pairs.tsv --res", ["--resume"]),
        ("dragoman fit --help ", ["all", "pairs.tsv"]),
        ("dragoman predict model --engine ", [*ENGINES]),
        ("dragoman predict model --data.v", [""]),
        ("dragoman fit p.tsv --model.d_model 32 --model.nh", ["--model.nhead"]),
        ("dragoman fit p.tsv --training.loggers csv,none --model.activation ", ["relu", "gelu"]),
        ("dragoman fit --tokenizer.shared --training.monitor=l", ["--training.monitor=loss"]),
        ("dragoman fit --tokenizer.shared t", ["true"]),
        ("dragoman fit --data.train pairs.tsv b.tsv --data.valid p", ["pairs.tsv"]),
        ("dragoman fit --data.weights 1 2.5 p", ["pairs.tsv"]),
    ],
)
def test_a_shell_completes_commands_options_settings_and_choices(line, offered, tmp_path):
    (tmp_path / "pairs.tsv").touch()
    assert complete(line, tmp_path) == offered


def test_a_shell_is_offered_each_setting_of_a_command(tmp_path):
    every = flatten_settings(Settings()).keys() - {"version"}
    assert {f"--{name}" for name in every} < {*complete("dragoman fit -", tmp_path)}


def test_all_errors_of_the_settings_are_reported_at_once(tmp_path):
    (tmp_path / "settings.yaml").write_text(
        "model:\n  d_modle: 3\n  nhed: 2\ntraining:\n  seed: x\n"
    )
    message = fails(
        "fit", write_pairs(tmp_path / "p.tsv", 50), "--config", tmp_path / "settings.yaml",
        "--trainig.max_steps", "3", "--out", tmp_path / "model",
    )  # fmt: skip
    assert "4 errors" in message
    for part in ("did you mean model.d_model?", "did you mean model.nhead?", "'x' is not a whole", "did you mean training.max_steps?"):  # fmt: skip
        assert part in message
    assert not (tmp_path / "model").exists()


def bad_files(folder):
    (folder / "empty.tsv").write_text("")
    (folder / "one_column.tsv").write_text("a\nb\n")
    (folder / "one_pair.tsv").write_text("a\tb\n")
    (folder / "same.tsv").write_text("a\tb\n" * 200)
    (folder / "long.tsv").write_text("a\tb\n" + "x" * 100_000 + "\tb\n")
    (folder / "latin.tsv").write_bytes(b"a\tb\n" * 3 + b"f\xfcnf\tb\n")
    (folder / "cut.tsv.gz").write_bytes(
        gzip.compress("".join(f"{w}\t{w}\n" for w in make_words(3000)).encode())[:-2000]
    )
    (folder / "fodler").mkdir()
    (folder / "pairs.csv").write_text("wort,laut\na,b\n")


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("empty.tsv", [], "empty.tsv: the file is empty"),
        ("one_column.tsv", [], "a pair needs two columns"),
        ("one_pair.tsv", [], "1 pairs with 1 different sources leave none"),
        ("same.tsv", [], "200 pairs with 1 different sources leave none"),
        ("long.tsv", [], "long.tsv:2: the source has 100000 characters"),
        ("latin.tsv", [], "latin.tsv:4: byte 0xfc"),
        ("cut.tsv.gz", [], "cut.tsv.gz"),
        ("fodler", [], "fodler"),
        ("missing.tsv", [], "missing.tsv"),
        ("pairs.csv", ["--data.source", "wrt"], "did you mean 'wort'?"),
        ("same.tsv", ["--data.valid", "nowhere.tsv"], "nowhere.tsv"),
    ],
)
def test_an_invalid_file_is_one_message_and_leaves_no_file(tmp_path, name, words, message):
    bad_files(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    found = fails("fit", name, "--out", "model", *words, cwd=tmp_path)
    assert message in found
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_an_existing_or_impossible_out_folder_is_an_error(trained, tmp_path):
    pairs = write_pairs(tmp_path / "p.tsv", 50)
    assert "--overwrite" in fails("fit", pairs, "--out", trained[0])
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails("fit", pairs, "--out", tmp_path / "file" / "model")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error(tmp_path):
    pairs = write_pairs(tmp_path / "p.tsv", 50)
    (tmp_path / "shut").mkdir(mode=0o500)
    assert "cannot be written" in fails("fit", pairs, "--out", tmp_path / "shut" / "model")


def test_a_missing_model_and_a_training_setting_are_errors(trained):
    assert "expected a model folder" in fails("predict", "nowhere", given=b"a\n")
    message = fails("predict", trained[0], "--training.seed", "3", given=b"a\n")
    assert "--training.seed: is for training only" in message


@pytest.mark.parametrize(
    ("command", "setting", "reason"),
    [
        ("predict m", "model.nhead", "is for training only"),
        ("predict m", "data.train", "predict does not use it"),
        ("serve m", "data.valid", "serve does not use it"),
        ("serve m", "data.encoding", "serve does not use it"),
        ("serve m", "decoding.num_hypotheses", "serve does not use it"),
        ("explain m s", "decoding.alignment", "explain does not use it"),
        ("suggest m s", "decoding.memory", "suggest does not use it"),
        ("evaluate m p.tsv", "evaluation.report", "evaluate does not use it"),
        ("compare a b", "model.x", "is for training only"),
        ("compare a b", "decoding.beam_size", "compare does not use it"),
        ("compare a b", "evaluation.repeated_sources", "compare does not use it"),
        ("inspect p.tsv", "training.x", "is for training only"),
        ("inspect p.tsv", "data.weights", "inspect does not use it"),
        ("inspect p.tsv", "decoding.seed", "inspect does not use it"),
        ("export m", "preset", "is for training only"),
    ],
)
def test_a_setting_that_a_command_does_not_use_is_an_error(command, setting, reason):
    name = command.partition(" ")[0]
    with pytest.raises(
        SettingsError, match=f"--{setting}: {reason}; `dragoman {name} --help all` lists"
    ):
        read_command_line([*command.split(), f"--{setting}", "3"], COMMANDS)
    with pytest.raises(SystemExit):
        read_command_line([name, f"--{setting}=3", "--help"], COMMANDS)


def test_an_option_of_models_is_an_error_for_outputs_in_files():
    outputs = ["evaluate", "--hypotheses", "x.txt", "--references", "y.txt"]
    for option in ("--device", "--engine", "--ensemble"):
        assert f"{option}: for a model only" in fails(*outputs, option, "torch")
    assert "--data.header: is not used" in fails(*outputs, "--data.header", "no")


def test_an_output_that_cannot_be_written_is_an_error(trained, tmp_path):
    message = fails("predict", trained[0], "--output", tmp_path / "no" / "out.txt", given=b"a\n")
    assert "cannot be written" in message
    message = fails("predict", trained[0], "--output", tmp_path, given=b"a\n")
    assert f"--output {tmp_path}: cannot be written: Is a directory" in message


def test_no_output_replaces_what_is_read(trained, tmp_path):
    path, link = tmp_path / "lines.txt", tmp_path / "link.txt"
    path.write_text("abc\nabd\n")
    link.hardlink_to(path)
    (tmp_path / "soft.jsonl").symlink_to(path)
    for name in ("lines.txt", "link.txt", "../" + tmp_path.name + "/lines.txt", "soft.jsonl"):
        message = fails("predict", trained[0], "--input", path, "--output", name, cwd=tmp_path)
        assert "this is the input too" in message
    low = ["--output", "o.jsonl", "--min-confidence", "0.5", "--low-confidence-output", path]
    assert "--low-confidence-output" in fails("predict", trained[0], "--input", link, *low)
    with path.open("rb") as stdin:
        found = subprocess.run(
            [sys.executable, "-m", "dragoman", "predict", trained[0], "--output", path],
            stdin=stdin, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
    assert found.returncode == 2
    assert b"this is the input too" in found.stderr
    message = fails("evaluate", trained[0], path, "--report", link)
    assert "this file is read too" in message
    outputs = ["--hypotheses", path, "--references", path, "--report", path]
    assert "this file is read too" in fails("evaluate", *outputs)
    assert path.read_text() == "abc\nabd\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_standard_output_is_one_sentence(tmp_path):
    (tmp_path / "lines.txt").write_text("a b\n")
    command = [sys.executable, "-m", "dragoman", "evaluate", "--hypotheses", "lines.txt"]
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            [*command, "--references", "lines.txt"],
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, timeout=120, check=False,
        )  # fmt: skip
    assert found.returncode == 1
    assert found.stderr == b"dragoman: No space left on device\n"


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_too_little_memory_is_one_sentence(trained, tmp_path, monkeypatch, error):
    def run_out(*_):
        raise error

    monkeypatch.setattr("dragoman.engines.torch_engine.search", run_out)
    (tmp_path / "lines.txt").write_text("abc\n")
    found = run("predict", trained[0], "--engine", "torch", "--input", tmp_path / "lines.txt")
    assert found.returncode == 1
    [line] = found.stderr.decode().splitlines()
    assert line.startswith("dragoman: out of memory (")
    assert "lower decoding.batch_tokens" in line


def test_a_misspelt_option_gets_did_you_mean_and_version_is_printed(trained):
    assert "did you mean --output?" in fails("predict", trained[0], "--outptu", "x")
    assert "did you mean --score?" in fails("predict", trained[0], "--force-target")
    assert "did you mean --low-confidence-output?" in fails("predict", trained[0], "--rest", "x")
    # A setting of the command before a similar option, and before a setting of others.
    assert "did you mean --decoding.seed?" in fails("predict", trained[0], "--seed", "3")
    message = fails("fit", "pairs.tsv", "--seed", "3", "--max-steps", "9", "--dropout", "0.3")
    for name in ("training.seed", "training.max_steps", "model.dropout"):
        assert f"did you mean --{name}?" in message
    assert run("--version").stdout.startswith(b"dragoman ")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fti pairs.tsv", "fti: there is no such command; did you mean fit?"),
        ("eval m p.tsv", "did you mean evaluate?"),
        ("xyz", "xyz: there is no such command; give one of fit, predict, "),
        ("predict m lines.txt", "a file of sources is given as --input lines.txt"),
        ("fit p.tsv -o m", "-o: fit does not take it; see dragoman fit --help"),
        ("fit p.tsv --seeds 0", "--seeds: '0' is not a number from 1; see dragoman fit --help"),
        ("explain m", "arguments are required: SOURCE; see dragoman explain --help"),
        ("fit p.tsv --config gone.yaml", "gone.yaml: the settings cannot be read: No such file"),
    ],
)
def test_a_wrong_command_or_option_is_one_line_that_says_what_to_do(command, said):
    [line] = fails(*command.split()).splitlines()
    assert said in line


def test_export_reports_its_check(trained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained[0], folder)
    found = run("export", folder, "--to", "ctranslate2", "--quantization", "int8")
    assert found.returncode == 0, found.stderr.decode()
    assert b"of 64 held-out outputs are PyTorch's" in found.stderr
    assert "--quantization" in fails("export", folder, "--to", "onnx", "--quantization", "int8")
    assert "takes no settings" in fails("export", folder, "--beam_size", "3")


def test_two_models_with_one_tokenizer_are_an_ensemble(trained, tmp_path):
    found = run("predict", trained[0], "--ensemble", trained[0], given=b"abc\n")
    assert found.stdout == b"ABC\n"
    message = fails("predict", trained[0], "--ensemble", trained[0], "--engine", "ctranslate2")
    assert "an ensemble is not supported" in message


def test_quantization_is_an_option(trained):
    words = ["--quantization", "int8", "--threads", "1"]
    assert run("predict", trained[0], *words, given=b"abc\n").stdout == b"ABC\n"
    message = fails("predict", trained[0], "--quantization", "int8", "--engine", "torch")
    assert "--quantization int8: needs CTranslate2" in message


def test_given_targets_are_scored(trained):
    found = run("predict", trained[0], "--score", "--jsonl", given=b"abc\tABC\nabc\tHHH\n")
    right, wrong = (json.loads(line) for line in found.stdout.splitlines())
    assert right["score"] > wrong["score"]
    assert len(wrong["log_probs"]) == len(wrong["tokens"]) == 4
    assert wrong["input"] == {"1": "abc", "2": "HHH"}
    both = fails("predict", trained[0], "--score", "--prefix", "2", given=b"abc\tA\n")
    assert "leave one of them out" in both


def test_the_choices_on_the_command_line_are_those_of_the_code():
    """They are written twice: the help must not wait for the engines to be loaded."""
    assert get_args(EngineName) == ENGINES
    assert get_args(Quantization) == QUANTIZATIONS


def test_invalid_values_of_options_are_errors(trained):
    for words in (["--threads", "0"], ["--engine", "tensorflow"]):
        found = run("predict", trained[0], *words, given=b"abc\n")
        assert found.returncode == 2
        assert words[1].encode() in found.stderr
    for engine in ("torch", "ctranslate2"):
        words = ["--engine", engine, "--device", "tpu"]
        assert "--device tpu" in fails("predict", trained[0], *words, given=b"abc\n")


def test_resume_does_not_take_pairs_as_its_value():
    for words, resume, pairs in (
        (["--resume", "a.tsv"], "must", ["a.tsv"]),
        (["--resume", "auto", "a.tsv"], "auto", ["a.tsv"]),
        (["a.tsv", "--resume"], "must", ["a.tsv"]),
        (["a.tsv", "--preset", "tiny"], "no", ["a.tsv"]),
    ):
        arguments, settings = read_command_line(["fit", *words], COMMANDS)
        assert (arguments.resume, arguments.pairs) == (resume, pairs)
        assert settings == (["--preset", "tiny"] if "--preset" in words else [])


def test_fit_takes_valid_and_test_as_inspect_does(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 20)
    missing = tmp_path / "dev.tsv"
    for option in ("--valid", "--data.valid"):
        for command in ("fit", "inspect"):
            assert f"{missing}:" in fails(command, pairs, option, missing)
    for option, setting in (("valid", "data.valid"), ("max-time", "training.max_minutes")):
        words = (f"--{option}", "1m", f"--{setting}=2")
        assert f"--{setting}: a shorter option gives the same" in fails("fit", pairs, *words)


def test_fit_without_pairs_or_with_resume_and_overwrite_is_an_error(tmp_path):
    assert "give PAIRS" in fails("fit")
    assert "leave out --overwrite" in fails("fit", "--resume", "--overwrite")
    message = fails("fit", "--resume", "--out", tmp_path / "model")
    assert "there is no run to resume; leave out --resume" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "minutes"),
    [("90m", 90), ("1h30m", 90), ("1.5h", 90), ("30s", 0.5), ("1d1s", 1440 + 1 / 60)],
)
def test_a_time_has_units(word, minutes):
    arguments, _ = read_command_line(["fit", "pairs.tsv", "--max-time", word], COMMANDS)
    assert vars(arguments)["training.max_minutes"] == pytest.approx(minutes)


@pytest.mark.parametrize("word", ["", "90", "0m", "1m2h", "1..2h", "-3m", "inf"])
def test_an_invalid_time_is_an_error(word, capsys):
    with pytest.raises(SystemExit):
        read_command_line(["fit", "pairs.tsv", f"--max-time={word}"], COMMANDS)
    assert "such as 90m or 1h30m" in capsys.readouterr().err


def test_max_time_leaves_a_model_and_a_checkpoint_to_resume_from(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 200)
    out = tmp_path / "model"
    words = [*SMALL, *BRIEF, "--decoding.max_length_ratio", "0", "--decoding.max_length_extra", "1"]
    found = run("fit", pairs, "--out", out, *words, "--max-time", "0.001s")
    shown = found.stderr.decode()
    assert found.returncode == 0, shown
    assert "valid, in percent or points of 100 [confidence interval, level 0.95]:" in shown
    assert "23 of 23 outputs were truncated at the maximum length" in shown
    assert "samples, source -> output (= as expected, ≠ expected instead):" in shown
    assert (out / "model.safetensors").is_file()
    kept = (tmp_path / "model.training" / "checkpoints").glob("step-*.ckpt")
    assert [path.name for path in kept] == ["step-1.ckpt"]


def test_pairs_are_prepared_in_another_process_while_fit_is_imported(tmp_path):
    pairs = tmp_path / "pairs.tsv"
    rows = (f"the {n} words of line {n}\tdie {n} Worte der Zeile {n}\n" for n in range(30_000))
    pairs.write_text("".join(rows))
    settings = read_settings(None, ["--data.cache", str(tmp_path / "cache")])
    with _preparing([str(pairs)], settings):
        pass
    (tmp_path / "data").mkdir()
    data = RunData.read([pairs], settings, tmp_path / "data")
    data.encode(choose_settings(settings, data.statistics).settings)
    assert "from the cache" in data.cache_note


def test_what_cannot_be_prepared_is_left_to_fit(tmp_path, capfd):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("one column\n" * 60_000)
    settings = read_settings(None, ["--data.cache", str(tmp_path / "cache")])
    with _preparing([str(pairs)], settings):
        pass
    assert capfd.readouterr() == ("", "")
    with pytest.raises(DataError, match="one column"):
        RunData.read([pairs], settings, tmp_path)
