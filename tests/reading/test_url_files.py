"""Files by their URLs, read with fsspec from memory and from the disk."""

import json
import os
import subprocess
import sys

import fsspec
import pytest

from conftest import BRIEF, SMALL, make_words, quiet_console
from dragoman import evaluate, fit, read_settings
from dragoman.cli import main
from dragoman.reading.pairs import list_files, read_pairs
from dragoman.reading.row_errors import name_file
from dragoman.reading.url_files import copy_files


@pytest.fixture
def memory():
    """The file system of memory:// URLs, with some files."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name, words in (("a", make_words(300)[:200]), ("b", make_words(300)[200:])):
        rows = "".join(f"{word}\t{word.upper()}\n" for word in words)
        system.pipe(f"/pairs/{name}.tsv", rows.encode())
    system.pipe("/broken.tsv", b"a\tb\nc\n")
    system.pipe("/none.tsv", b"")
    system.pipe("/not.tsv.gz", b"a\tb\n")
    system.pipe("/not.parquet", b"PAR1")
    yield system
    system.store.clear()


def test_a_run_reads_files_by_their_urls_and_names_them_so(memory, tmp_path):
    words = [*SMALL, *BRIEF, "--data.valid", "memory://pairs/b.tsv", "--data.cache", "none"]
    model = fit(
        "memory://pairs/a.tsv", tmp_path / "model", read_settings(None, words),
        console=quiet_console(),
    )  # fmt: skip
    assert model.settings.data.valid == ("memory://pairs/b.tsv",)
    data = json.loads((tmp_path / "model" / "metrics.json").read_text())["data"]
    assert data["files"] == ["memory://pairs/a.tsv"]
    assert {*data["sha256"]} == {"memory://pairs/a.tsv", "memory://pairs/b.tsv"}
    evaluation = evaluate(tmp_path / "model", "memory://pairs/b.tsv", into_model=True)
    assert evaluation.folder.name == "b"
    assert evaluation.rows[0].file == "memory://pairs/b.tsv"


def test_predict_takes_a_url_and_writes_what_it_writes_for_the_file(trained, memory, tmp_path):
    (tmp_path / "in.tsv").write_text("source\nabc\nbad\n")
    memory.pipe("/in.tsv", (tmp_path / "in.tsv").read_bytes())
    written = []
    for name in (tmp_path / "in.tsv", "memory://in.tsv", f"file://{tmp_path}/in.tsv"):
        out = tmp_path / f"{len(written)}.tsv"
        assert main(["predict", str(trained[0]), "--input", str(name), "--output", str(out)]) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1] == written[2]
    assert written[0].splitlines()[0].startswith(b"source\t")


def test_outputs_in_files_are_scored_by_their_urls(memory, tmp_path, capsys):
    memory.pipe("/out.txt", b"ab\ncd\n")
    memory.pipe("/ref.txt", b"ab\ncx\n")
    words = ["--hypotheses", "memory://out.txt", "--references", "memory://ref.txt", "--json"]
    assert main(["evaluate", *words]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2
    memory.pipe("/ref.txt", b"ab\n")
    assert main(["evaluate", *words]) == 2
    assert "memory://ref.txt: 1 lines, but memory://out.txt has 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing.tsv", "memory://nothing.tsv: there is no such file"),
        ("memory://pairs/*.csv", "memory://pairs/*.csv: no file fits this pattern"),
        ("memory://pairs", "memory://pairs: it is a folder; give its files, such as"),
        ("memory://none.tsv", "memory://none.tsv: the file is empty"),
        ("memory://broken.tsv", "memory://broken.tsv:2: 1 column, expected 2"),
        ("memory://not.tsv.gz", "memory://not.tsv.gz: it is not compressed with gzip"),
        ("memory://not.parquet", "memory://not.parquet: it is not a complete Parquet file"),
        ("unheard://pairs.tsv", "unheard://pairs.tsv: fsspec cannot read it: Protocol not known"),
        ("file:///no/such.tsv", "file:///no/such.tsv: there is no such file"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_url(memory, capsys, url, message):
    assert main(["fit", url, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "/tmp" not in error


def test_a_protocol_whose_package_is_missing_and_a_forbidden_file_are_errors(
    memory, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert main(["inspect", "gs://bucket/pairs.tsv"]) == 2
    assert (
        "gs://bucket/pairs.tsv: fsspec cannot read it: Please install gcsfs"
        in capsys.readouterr().err
    )

    def refuse(*_, **__):
        raise PermissionError("Forbidden")

    monkeypatch.setattr(type(memory), "get_file", refuse)
    assert main(["inspect", "memory://pairs/a.tsv"]) == 2
    assert "memory://pairs/a.tsv: no permission to read it" in capsys.readouterr().err


def test_a_pattern_gives_all_its_files_and_a_changed_file_is_copied_again(memory):
    [first, second] = list_files(["memory://pairs/*.tsv"])
    assert [name_file(first), name_file(second)] == [
        "memory:///pairs/a.tsv",
        "memory:///pairs/b.tsv",
    ]
    assert len(list(read_pairs("memory://pairs/*.tsv"))) == 300
    before, [copy] = first.stat().st_ino, copy_files("memory:///pairs/a.tsv")
    assert (copy, copy.stat().st_ino) == (first, before)
    memory.pipe("/pairs/a.tsv", b"new\tNEW\n")
    [pair] = read_pairs("memory:///pairs/a.tsv")
    assert pair.source == "new"


def test_a_long_url_has_a_copy_too(memory):
    url = f"memory://{'folder/' * 60}x%20y.tsv"
    memory.pipe(f"/{'folder/' * 60}x%20y.tsv", b"a\tb\n")
    [pair] = read_pairs(url)
    assert (pair.source, pair.file) == ("a", url)


def test_copies_go_with_the_process(tmp_path):
    (tmp_path / "a.tsv").write_text("a\tb\n")
    script = (
        "from dragoman.reading.url_files import copy_files; "
        f"print(copy_files('file://{tmp_path}/a.tsv')[0])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert found.stdout.startswith(str(tmp_path / "dragoman-url-"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tsv"]
