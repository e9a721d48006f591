"""Parts of a prediction, put together: the same files as one process writes, or an error."""

import io
import json
import subprocess
import sys

import pytest

from conftest import make_words
from dragoman.cli import main
from dragoman.commands.join import join
from dragoman.commands.predict import Job, name_part, run_job
from dragoman.errors import DragomanError
from dragoman.predictor import Predictor
from dragoman.settings import DecodingSettings, Settings
from processes import start_until

WORDS = [*make_words(690, seed=3), "xyz", "aaaaaaaaaaaa"]  # windows of 64, 128, 256 and 244 rows


@pytest.fixture(scope="module")
def model(trained):
    return Predictor.load(trained[0], threads=1)


@pytest.fixture
def source(tmp_path):
    """Rows of which some are bad, and have columns."""
    path = tmp_path / "in.jsonl"
    rows = [
        "broken\n" if i % 97 == 5 else json.dumps({"id": i, "source": word, "note": "a\tb"}) + "\n"
        for i, word in enumerate(WORDS)
    ]
    path.write_text("".join(rows))
    return path


def predict_parts(model, source, output, count, **values):
    for number in range(1, count + 1):
        run_job(model, Job(input=source, output=output, part=(number, count), **values))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("count", [3, 6])  # 6: more than there are windows
@pytest.mark.parametrize(
    "name",
    ["o.txt", "o.txt.gz", "o.jsonl", "o.jsonl.zst", "o.csv", "o.csv.gz", "o.tsv", "o.parquet"],
)
def test_joined_parts_are_byte_for_byte_what_one_process_writes(
    model, source, tmp_path, name, count
):
    whole, joined = tmp_path / "whole" / name, tmp_path / "joined" / name
    whole.parent.mkdir()
    joined.parent.mkdir()
    report = run_job(model, Job(input=source, output=whole))
    predict_parts(model, source, joined, count)
    assert not joined.exists()
    assert join(joined) == report
    assert joined.read_bytes() == whole.read_bytes()
    assert names_in(joined.parent) == [name]


@pytest.mark.parametrize(("name", "low"), [("o.jsonl", "low.csv.gz"), ("o.tsv", "low.parquet")])
def test_the_low_confidence_output_is_joined_too(model, source, tmp_path, name, low):
    found = sorted(best.confidence for [best] in model.predict_n_best(WORDS))
    reports = []
    for folder in (tmp_path / "whole", tmp_path / "parts"):
        folder.mkdir()
        values = {
            "low_confidence_output": folder / low,
            "min_confidence": round(found[len(found) // 2], 4),
        }
        if folder.name == "whole":
            report = run_job(model, Job(input=source, output=folder / name, **values))
        else:
            predict_parts(model, source, folder / name, 3, **values)
            report = join(folder / name)
        reports.append([line.replace(str(folder), "") for line in report])
    assert reports[0] == reports[1]
    for one in (name, low):
        whole = (tmp_path / "whole" / one).read_bytes()
        assert (tmp_path / "parts" / one).read_bytes() == whole
    assert names_in(tmp_path / "parts") == sorted([low, name])


@pytest.mark.parametrize("name", ["o.txt.gz", "o.csv", "o.parquet"])
def test_parts_of_an_empty_input_are_joined(model, tmp_path, name):
    (tmp_path / "in.txt").write_text("")
    run_job(model, Job(input=tmp_path / "in.txt", output=tmp_path / f"whole-{name}"))
    predict_parts(model, tmp_path / "in.txt", tmp_path / name, 2)
    join(tmp_path / name)
    assert (tmp_path / name).read_bytes() == (tmp_path / f"whole-{name}").read_bytes()


def test_parts_of_standard_input_are_joined(model, source, tmp_path, monkeypatch):
    values = {"data": {"format": "jsonl"}}
    from_jsonl = Predictor.load(model.folders, values, threads=1)
    run_job(from_jsonl, Job(input=source, output=tmp_path / "whole.jsonl"))
    for number in (1, 2):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
        run_job(from_jsonl, Job(output=tmp_path / "o.jsonl", part=(number, 2)))
    join(tmp_path / "o.jsonl")
    assert (tmp_path / "o.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_part_resumes_after_sigkill_and_is_not_done_twice(trained, model, source, tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "o.jsonl"
    run_job(model, Job(input=source, output=whole))
    words = ["predict", trained[0], "--input", source, "--output", output, "--threads", "1"]
    words += ["--part", "2/2"]
    process = start_until(f"{name_part(output, 2, 2).name}.journal", words, 2)
    process.kill()
    process.communicate()
    run_job(model, Job(input=source, output=output, part=(1, 2)))
    with pytest.raises(DragomanError, match="part 2/2 is unfinished, at row 192: run"):
        join(output)
    command = [sys.executable, "-m", "dragoman", *map(str, words)]
    for message in ("resuming after row 192", "all 692 rows were done already"):
        again = subprocess.run(command, capture_output=True, text=True, check=True)
        assert message in again.stderr
    join(output)
    assert output.read_bytes() == whole.read_bytes()


def test_missing_and_damaged_parts_are_named(model, source, tmp_path):
    output = tmp_path / "o.jsonl"
    with pytest.raises(DragomanError, match="no part of it is beside it"):
        join(output)
    for number in (2, 3):
        run_job(model, Job(input=source, output=output, part=(number, 4)))
    with pytest.raises(DragomanError, match=r"part 1/4 is missing, part 4/4 is missing: run"):
        join(output)
    predict_parts(model, source, output, 4)
    part = name_part(output, 3, 4)
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    with pytest.raises(DragomanError, match=r"part-3-of-4: [\d,]+ bytes, and its journal says"):
        join(output)
    part.write_bytes(content)
    run_job(model, Job(input=source, output=output, part=(1, 2)))
    with pytest.raises(DragomanError, match="there are parts of 2 and of 4"):
        join(output)
    assert not output.exists()


def test_parts_of_different_inputs_or_settings_are_refused(trained, model, source, tmp_path):
    output = tmp_path / "o.jsonl"
    predict_parts(model, source, output, 2)
    given = source.read_text()
    source.write_text(given.replace('"id": 691', '"id": 999'))  # in a window of part 2
    run_job(model, Job(input=source, output=output, part=(1, 2), restart=True))
    with pytest.raises(DragomanError, match="part 2/2 is of another input"):
        join(output)
    source.write_text(given)
    settings = Settings(decoding=DecodingSettings(max_length_extra=3))
    other = Predictor.load(trained[0], settings, threads=1)
    with pytest.raises(DragomanError, match=r"max_length_extra 50, now it is 3.*--restart"):
        run_job(other, Job(input=source, output=output, part=(2, 2)))
    run_job(model, Job(input=source, output=output, part=(1, 2), restart=True))
    run_job(other, Job(input=source, output=output, part=(2, 2), restart=True))
    with pytest.raises(DragomanError, match=r"part 2/2 .* decoding.max_length_extra 3, part 1/2"):
        join(output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "m", "--part", "9/8"], "'9/8' is not K/N with K from 1 to N"),
        (["predict", "m", "--part", "0/8"], "'0/8' is not K/N"),
        (["predict", "m", "--part", "third"], "'third' is not K/N"),
        (["join", "out.jsonl", "--frob", "3"], "--frob: join takes no settings"),
        (["join", "out.jsonl"], "no part of it is beside it"),
    ],
)
def test_what_is_no_part_is_an_error(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_part_needs_a_file(model, source, tmp_path):
    with pytest.raises(DragomanError, match="--part: give --output"):
        run_job(model, Job(input=source, part=(1, 2)))
    with pytest.raises(DragomanError, match=r"/dev/null: it is not a file"):
        run_job(model, Job(input=source, output=tmp_path / "/dev/null", part=(1, 2)))
