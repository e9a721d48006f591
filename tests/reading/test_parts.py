"""A file that is cut into parts gives the pairs and errors of the whole file."""

import json
from collections import Counter
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.errors import DataError
from dragoman.reading.pairs import Part, RowErrors, cut_table, read_part
from dragoman.settings import DataSettings

LINES = [
    "a\tb",
    "äöü\tß",
    "",
    "broken",
    "x\t",
    "\ty",
    'say "yes"\tno',
    "a\u2028b\tc",
    "tab\tb\tc",
    "q" * 60 + "\tz",
]
FIELDS = st.text('abä\u2028"', max_size=9)
ENDS = st.sampled_from(["\n", "\r\n"])


def read(part, settings):
    errors = RowErrors()
    pairs = [*read_part(part, settings, [errors])]
    return pairs, dict(errors.counts), errors.examples


def check(files, settings, every):
    """Compare the parts with the whole, if each can be read; else the caller reads the whole."""
    whole = read(Part(files), settings)
    parts = cut_table(files, settings, every)
    try:
        found = [read(part, settings) for part in parts]
    except DataError:
        return 1
    pairs, errors = [], RowErrors()
    for part_pairs, counts, examples in found:
        pairs += part_pairs
        errors.merge([RowErrors(counts=Counter(counts), examples=examples)])
    assert (pairs, dict(errors.counts), errors.examples) == whole
    return len(parts)


@given(
    lines=st.lists(st.sampled_from(LINES), min_size=8, max_size=60),
    end=ENDS, ends_with_it=st.booleans(), mark=st.booleans(), every=st.integers(1, 9),
)  # fmt: skip
def test_parts_of_a_tsv_are_the_whole(tmp_path_factory, lines, end, ends_with_it, mark, every):
    path = tmp_path_factory.mktemp("tsv") / "x.tsv"
    text = ("\ufeff" if mark else "") + end.join(["first\trow", *lines]) + end * ends_with_it
    path.write_bytes(text.encode())
    with patch("dragoman.reading.text_files._CHUNK_BYTES", 50):
        check([path], DataSettings(broken_rows="skip"), every)


@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS), min_size=8, max_size=40),
    end=ENDS,
    every=st.integers(1, 9),
)
def test_parts_of_jsonl_are_the_whole(tmp_path_factory, rows, end, every):
    path = tmp_path_factory.mktemp("jsonl") / "x.jsonl"
    lines = [json.dumps({"source": a, "target": b}, ensure_ascii=False) for a, b in rows]
    path.write_bytes((end.join(lines) + end).encode())
    with patch("dragoman.reading.text_files._CHUNK_BYTES", 50):
        check([path], DataSettings(broken_rows="skip"), every)


@given(rows=st.lists(st.tuples(FIELDS, FIELDS), min_size=8, max_size=40), every=st.integers(1, 9))
def test_parts_of_parallel_texts_are_the_whole(tmp_path_factory, rows, every):
    folder = tmp_path_factory.mktemp("parallel")
    files = [folder / "x.de", folder / "x.en"]
    for file, side in zip(files, zip(*rows, strict=True), strict=True):
        file.write_bytes("".join(f"{text}\n" for text in side).encode())
    with patch("dragoman.reading.text_files._CHUNK_BYTES", 50):
        check(files, DataSettings(broken_rows="skip", format="parallel"), every)


@pytest.mark.parametrize("layout", ["tsv", "jsonl", "parallel"])
def test_long_files_are_cut(tmp_path, layout):
    rows = [(f"source {i}", f"target {i}") for i in range(6000)]
    keys = ("source", "target")
    texts = {
        "tsv": {"x.tsv": ["\t".join(row) for row in rows]},
        "jsonl": {"x.jsonl": [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]},
        "parallel": dict(zip(("x.de", "x.en"), zip(*rows, strict=True), strict=True)),
    }[layout]
    for name, lines in texts.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    settings = DataSettings(broken_rows="skip", format=layout)
    assert check([tmp_path / name for name in texts], settings, 500) > 4
