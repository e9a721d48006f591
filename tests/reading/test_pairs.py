import csv
import gzip
import io
import json
import os
import random
import time
import tracemalloc
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dragoman.errors import DataError
from dragoman.reading import statistics
from dragoman.reading.pairs import (
    InvalidRow,
    Pair,
    RowErrors,
    Source,
    list_source_columns,
    read_pairs,
    read_sources,
)
from dragoman.reading.statistics import collect_statistics, split_of
from dragoman.settings import DataSettings

Row = TypeVar("Row")
PAIRS = [("drei Häuser", "three houses"), ("Ж 😀", 'a, "b" c'), (" x\u2028y\x85z ", "\ufeffq\rr")]
SKIP = DataSettings(broken_rows="skip", long_rows="skip")
DEFAULT = DataSettings()
quick = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def pack(data: bytes, packing: str) -> bytes:
    if packing == ".gz":
        return gzip.compress(data, mtime=0)
    if packing == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    return data


def dump(layout: str, pairs: Sequence[tuple[str, str]]) -> bytes:
    if layout == "tsv":
        return "".join(f"{a}\t{b}\n" for a, b in pairs).encode()
    if layout == "csv":
        text = io.StringIO()
        csv.writer(text).writerows([("source", "target"), *pairs])
        return text.getvalue().encode()
    if layout == "jsonl":
        return "".join(json.dumps({"source": a, "target": b}) + "\n" for a, b in pairs).encode()
    sink = io.BytesIO()
    columns = {"source": [a for a, _ in pairs], "target": [b for _, b in pairs]}
    pq.write_table(pa.table(columns, schema=pa.schema(dict.fromkeys(columns, pa.string()))), sink)
    return sink.getvalue()


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(*paths: Path, **options: object) -> list[tuple[str, str]]:
    found = read_pairs(paths, DataSettings.model_validate(options))
    return [(pair.source, pair.target) for pair in found]


def fail(*paths: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(*paths, **options)
    return str(caught.value)


def skip_errors(path: Path, **options: object) -> tuple[list[tuple[str, str]], RowErrors]:
    errors = RowErrors()
    chosen = SKIP.model_copy(update=options)
    return [(pair.source, pair.target) for pair in read_pairs([path], chosen, errors)], errors


# Formats


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("layout", ["tsv", "csv", "jsonl"])
def test_every_format_and_packing_gives_the_same_pairs(tmp_path, layout, packing):
    path = write(tmp_path, f"p.{layout}{packing}", pack(dump(layout, PAIRS), packing))
    assert read(path) == PAIRS


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_parallel_files_give_the_same_pairs(tmp_path, packing):
    sides = ["".join(f"{pair[side]}\n" for pair in PAIRS).encode() for side in (0, 1)]
    paths = [
        write(tmp_path, f"p.{n}{packing}", pack(side, packing)) for n, side in enumerate(sides)
    ]
    assert read(*paths) == PAIRS


def test_parquet_gives_the_same_pairs(tmp_path):
    assert read(write(tmp_path, "p.parquet", dump("parquet", PAIRS))) == PAIRS


def test_a_pair_has_its_file_and_line(tmp_path):
    path = write(tmp_path, "p.csv", 'source,target\n"a\nb",c\nd,e\n')
    assert list(read_pairs([path], DEFAULT)) == [
        Pair("a\nb", "c", (), 2, str(path)),
        Pair("d", "e", (), 4, str(path)),
    ]


def test_many_blocks_keep_their_line_numbers(tmp_path):
    lines = [f"{n} {'x' * (n % 97)}\t{n}" for n in range(1, 20_000)]
    path = write(tmp_path, "p.tsv", "\n".join(lines))
    found = list(read_pairs([path], DEFAULT))
    assert [f"{pair.source}\t{pair.target}" for pair in found] == lines
    assert all(pair.line == int(pair.target) for pair in found)


def test_byte_order_mark_windows_line_ends_and_empty_last_lines_are_not_text(tmp_path):
    assert read(write(tmp_path, "p.tsv", b"\xef\xbb\xbfa\tb\r\nc\td\r\n\r\n\n")) == [
        ("a", "b"),
        ("c", "d"),
    ]


def test_a_carriage_return_before_the_line_end_is_text_on_every_line(tmp_path):
    for end in ("", "\r\n", "\n\r\n"):
        path = write(tmp_path, "p.tsv", f"a\tb\r\r\nc\td\r\r\n{end}")
        assert read(path) == [("a", "b\r"), ("c", "d\r")]


def test_line_ends_between_two_chunks_are_whole(tmp_path):
    for length in range(65_530, 65_540):
        path = write(tmp_path, "p.tsv", f"{'x' * (length - 2)}\tb\r\n\r\n\r\nc\td\r\n\r\n")
        found, errors = skip_errors(path, max_characters=70_000)
        assert [target for _, target in found] == ["b", "d"]
        assert errors.counts == {"empty line": 2}


def test_two_compressed_streams_in_one_file_are_read_to_the_end(tmp_path):
    for packing in (".gz", ".zst"):
        data = pack(b"a\tb\n", packing) + pack(b"c\td\n", packing)
        assert read(write(tmp_path, f"p.tsv{packing}", data)) == [("a", "b"), ("c", "d")]


def test_a_json_number_keeps_its_digits(tmp_path):
    path = write(tmp_path, "p.jsonl", '{"source": 1.50, "target": 12345678901234567890123}')
    assert read(path) == [("1.50", "12345678901234567890123")]


def test_parquet_columns_may_hold_categories_integers_and_bytes(tmp_path):
    table = pa.table(
        {"a": pa.array(["x", "y"]).dictionary_encode(), "b": [1, 2], "c": [b"u", b"v"]}
    )
    pq.write_table(table, tmp_path / "p.parquet")
    path = tmp_path / "p.parquet"
    assert read(path, source="c", target="a") == [("u", "x"), ("v", "y")]
    assert read(path, source="b", target="1") == [("1", "x"), ("2", "y")]


def test_reading_takes_constant_memory(tmp_path):
    def measure(rows: int) -> int:
        path = write(tmp_path, "p.tsv", b"some source\tsome target\n" * rows)
        tracemalloc.start()
        assert sum(1 for _ in read_pairs([path], DEFAULT)) == rows
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert measure(60_000) < 1.2 * measure(10_000)


text = st.text(
    st.characters(exclude_characters="\t\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda value: not value.isspace())


@quick
@given(pairs=st.lists(st.tuples(text, text), min_size=1, max_size=8), mark=st.booleans())
@pytest.mark.parametrize("layout", ["tsv", "csv", "jsonl", "parquet"])
def test_written_pairs_read_back_identical(tmp_path, layout, pairs, mark):
    # A mark at the start of the file is dropped, so a first text that begins with one needs its own.
    assume(mark or not pairs[0][0].startswith("\ufeff"))
    data = dump(layout, pairs)
    if mark and layout != "parquet":
        data = b"\xef\xbb\xbf" + data
    assert read(write(tmp_path, f"p.{layout}", data)) == pairs


any_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@quick
@given(pairs=st.lists(st.tuples(any_text, any_text), min_size=1, max_size=5))
@pytest.mark.parametrize("layout", ["csv", "jsonl", "parquet"])
def test_quoted_formats_keep_tabs_and_line_ends(tmp_path, layout, pairs):
    assume(not any(side.isspace() for pair in pairs for side in pair))
    assert read(write(tmp_path, f"p.{layout}", dump(layout, pairs))) == pairs


# Columns


def test_columns_are_found_by_position_and_by_name(tmp_path):
    path = write(tmp_path, "p.tsv", "lemma\tform\ttense\nwalk\twalked\tPST\ngo\tgoes\t\n")
    by_name = DataSettings(header="yes", source="lemma", target="form", features=("tense",))
    found = list(read_pairs([path], by_name))
    assert [pair.features for pair in found] == [("tense=PST",), ("tense=",)]
    by_position = DataSettings(header="no", source="2", target="1", features=("3",))
    first = next(read_pairs([path], by_position))
    assert first[:4] == ("form", "lemma", ("3=tense",), 1)


def test_named_source_and_target_are_found_among_others(tmp_path):
    path = write(tmp_path, "p.csv", "id,target,source\n1,t,s\n")
    assert read(path) == [("s", "t")]


def test_a_misspelt_column_gets_a_guess_and_the_list(tmp_path):
    path = write(tmp_path, "p.csv", "lemma,form,tense\na,b,c\n")
    message = fail(path, source="lema", target="from", features=("mood",))
    assert "data.source=lema" in message
    assert "did you mean 'lemma'?" in message
    assert "data.target=from" in message
    assert "did you mean 'form'?" in message
    assert "data.features=mood" in message
    assert "'lemma', 'form', 'tense'" in message


@pytest.mark.parametrize("column", ["3", "0"])
def test_a_position_outside_the_file_is_refused(tmp_path, column):
    path = write(tmp_path, "p.tsv", "a\tb\n")
    assert f"data.target={column}: there is no such column" in fail(path, target=column)


def test_a_name_without_header_is_refused(tmp_path):
    message = fail(write(tmp_path, "p.tsv", "a\tb\n"), source="lemma")
    assert "no header" in message
    assert "data.header=yes" in message


def test_a_column_cannot_be_used_twice(tmp_path):
    assert "twice" in fail(write(tmp_path, "p.tsv", "a\tb\n"), source="2")


def test_more_than_two_columns_must_be_chosen(tmp_path):
    message = fail(write(tmp_path, "p.tsv", "a\tb\tc\n"))
    assert "3 columns: 'a', 'b', 'c'" in message
    assert "data.source=1" in message
    assert read(write(tmp_path, "p.tsv", "a\tb\tc\n"), source="3") == [("c", "b")]


@pytest.mark.parametrize(
    ("name", "line", "remedy"),
    [
        ("p.tsv", "a,b", "data.format=csv"),
        ("p.txt", "a;b", "semicolons"),
        ("p.tsv", "a ||| b", "'|||'"),
        ("p.tsv", "a   b", "runs of spaces"),
        ("p.tsv", '{"source": "a", "target": "b"}', "data.format=jsonl"),
        ("p.csv", "a|b", "data.separator='|'"),
        ("p.tsv", "word", "a tab"),
        ("p.jsonl", '{"text": "a"}', "two columns"),
    ],
)
def test_one_column_is_refused_with_a_remedy(tmp_path, name, line, remedy):
    message = fail(write(tmp_path, name, f"{line}\n"))
    assert "two columns" in message
    assert remedy in message
    assert name in message


def test_leading_tags_become_features(tmp_path):
    path = write(
        tmp_path,
        "p.tsv",
        "<V> <PST> walk\tx\n<V>walk\tx\nwalk <V>\tx\n<V>  a\tx\n<> a\tx\n<a b> c\tx\n<V>\tx\n",
    )
    errors = RowErrors()
    options = SKIP.model_copy(update={"leading_tags": True})
    found = [(pair.source, pair.features) for pair in read_pairs([path], options, errors)]
    assert found == [
        ("walk", ("<V>", "<PST>")),
        ("<V>walk", ()),
        ("walk <V>", ()),
        (" a", ("<V>",)),
        ("<> a", ()),
        ("<a b> c", ()),
    ]
    assert errors.counts == {"empty side": 1}


def test_column_features_precede_leading_tags(tmp_path):
    path = write(tmp_path, "p.tsv", "<V> a\tb\tde\n")
    chosen = DataSettings(features=("3",), leading_tags=True)
    assert next(read_pairs([path], chosen)).features == ("3=de", "<V>")


# Invalid rows

GOOD = "good\tfine\n"
BROKEN = {
    "wrong number of columns": (b"a\tb\tc", "3 columns, expected 2"),
    "invalid UTF-8": (b"a\t\xffb", "byte 0xff at character 3 is not UTF-8"),
    "empty side": (b"\tb", "the source is empty"),
    "empty line": (b"", "the line is empty"),
    "NUL character": (b"a\tb\0", "NUL character"),
    "over-long side": (b"a\t" + b"b" * 5001, "the target has 5001 characters"),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_an_invalid_row_is_named_by_file_and_line(tmp_path, reason):
    row, found = BROKEN[reason]
    path = write(tmp_path, "p.tsv", GOOD.encode() + row + b"\n" + GOOD.encode())
    pairs, errors = skip_errors(path)
    assert len(pairs) == 2
    assert errors.counts == {reason: 1}
    assert f"{path}:2: " in errors.report()
    assert found in errors.report()
    message = fail(path)
    assert f"{path}:2: " in message
    assert found in message
    assert "1 of 3 rows" in message
    policy = "data.long_rows=skip" if reason == "over-long side" else "data.broken_rows=skip"
    assert policy in message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"source": "a"', "bad JSON"),
        ('["a", "b"]', "bad JSON"),
        ('{"source": NaN, "target": "b"}', "bad JSON"),
        ("[" * 100_000, "bad JSON"),
        ('{"source": "a", "target": "b", "source": "c"}', "bad JSON"),
        ('{"source": "a", "target": "b", "more": {"x": 1, "x": 2}}', "bad JSON"),
        ('{"source": "a", "traget": "b"}', "missing field"),
        ('{"source": ["a"], "target": "b"}', "value that is not text"),
        ('{"source": true, "target": "b"}', "value that is not text"),
        ('{"source": null, "target": "b"}', "empty side"),
        ('{"source": "\\ud800", "target": "b"}', "lone surrogate"),
        ('{"source": "\\u0000", "target": "b"}', "NUL character"),
        ("", "empty line"),
    ],
)
def test_an_invalid_json_line_is_counted(tmp_path, line, reason):
    good = '{"source": "a", "target": "b"}\n'
    path = write(tmp_path, "p.jsonl", f"{good}{line}\n{good}")
    pairs, errors = skip_errors(path)
    assert len(pairs) == 2
    assert errors.counts == {reason: 1}
    assert f"{path}:2: " in errors.report()


def test_a_repeated_json_field_is_named(tmp_path):
    # Python takes the last, and says nothing of the first.
    path = write(tmp_path, "p.jsonl", '{"source": "a", "source": "b", "target": "c"}')
    assert "field 'source' occurs twice" in fail(path)
    path = write(tmp_path, "p.jsonl", '{"source": "a", "target": "c"}\n{"target": 1, "target": 2}')
    assert f"{path}:2: the line is invalid JSON: field 'target' occurs twice" in fail(path)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("a,b,c", "wrong number of columns"),
        ('"a"x,b', "bad CSV"),
        ("a\rb,c", "bad CSV"),
        ("", "empty line"),
        ("a\0,b", "NUL character"),
        (f"a,{'b' * 140_000}", "over-long side"),
    ],
)
def test_an_invalid_csv_record_costs_no_other_row(tmp_path, rows, reason):
    good = "".join(f"s{n},t{n}\n" for n in range(30_000))
    path = write(tmp_path, "p.csv", f"source,target\ns,t\n{rows}\n{good}")
    pairs, errors = skip_errors(path)
    assert len(pairs) == 30_001
    assert errors.counts == {reason: 1}
    assert f"{path}:3: " in errors.report()


def test_invalid_bytes_in_csv_and_parquet_are_counted(tmp_path):
    path = write(tmp_path, "p.csv", b'source,target\na,b\n"c\n\xff",d\ne,f\n')
    pairs, errors = skip_errors(path)
    assert pairs == [("a", "b"), ("e", "f")]
    assert errors.counts == {"invalid UTF-8": 1}
    table = pa.table({"source": [b"a", b"\xff", None], "target": [b"b", b"c", b"d"]})
    pq.write_table(table, tmp_path / "p.parquet")
    pairs, errors = skip_errors(tmp_path / "p.parquet")
    assert pairs == [("a", "b")]
    assert errors.counts == {"invalid UTF-8": 1, "empty side": 1}
    assert "p.parquet:2: " in errors.report()


def test_an_error_comes_after_the_good_rows_and_counts_all(tmp_path):
    path = write(tmp_path, "p.tsv", GOOD + "x\n" * 30 + GOOD + f"a\t{'b' * 6000}\n")
    errors = RowErrors()
    pairs = read_pairs([path], DEFAULT, errors)
    seen = [next(pairs), next(pairs)]
    with pytest.raises(DataError) as caught:
        next(pairs)
    message = str(caught.value)
    assert len(seen) == 2
    assert errors.total == 31
    assert "31 of 33 rows" in message
    assert "30 x wrong number of columns" in message
    assert "data.broken_rows=skip" in message
    assert "data.long_rows=skip" in message
    assert message.count(f"{path}:") == 1 + 10
    assert "and 21 more" in message


def test_invalid_and_long_rows_have_separate_policies(tmp_path):
    path = write(tmp_path, "p.tsv", f"{GOOD}x\na\t{'b' * 6000}\n")
    assert "1 of 3 rows" in fail(path, broken_rows="skip")
    assert "1 of 3 rows" in fail(path, long_rows="skip")
    assert read(path, broken_rows="skip", long_rows="skip") == [("good", "fine")]


def test_a_file_without_a_valid_row_is_refused_even_when_skipping(tmp_path):
    message = fail(write(tmp_path, "p.tsv", "a\t\n\tb\n"), broken_rows="skip")
    assert "none of its 2 rows" in message


# Invalid files


def test_a_missing_file_gets_a_guess(tmp_path):
    write(tmp_path, "pairs.tsv", GOOD)
    assert f"did you mean {tmp_path / 'pairs.tsv'}?" in fail(tmp_path / "pair.tsv")
    assert "no folder" in fail(tmp_path / "nowhere" / "pairs.tsv")
    assert "cannot be read" in fail(Path("a\0b"))


def test_a_folder_is_refused(tmp_path):
    assert "it is a folder" in fail(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_missing_file_in_a_folder_that_cannot_be_listed_gets_no_guess(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o100)
    assert fail(tmp_path / "closed" / "p.tsv").endswith("there is no such file")


def test_max_characters_has_no_upper_limit(tmp_path):
    path = write(tmp_path, "p.csv", "source,target\na,b\n")
    assert read(path, max_characters=10**30) == [("a", "b")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(tmp_path):
    path = write(tmp_path, "p.tsv", GOOD)
    path.chmod(0)
    assert "permission" in fail(path)


@pytest.mark.parametrize("name", ["p.tsv", "p.csv", "p.jsonl", "p.tsv.gz", "p.tsv.zst"])
@pytest.mark.parametrize("data", [b"", b"\n\r\n\n"])
def test_an_empty_file_is_refused(tmp_path, name, data):
    packed = pack(data, Path(name).suffix)
    assert "the file is empty" in fail(write(tmp_path, name, packed))
    assert "the file is empty" in fail(write(tmp_path, name, b""))


def test_a_file_with_a_header_only_is_refused(tmp_path):
    assert "no pair" in fail(write(tmp_path, "p.csv", "source,target\n"))
    assert "no pair" in fail(write(tmp_path, "p.parquet", dump("parquet", [])))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_truncated_compressed_file_is_refused(tmp_path, packing):
    data = pack(b"".join(b"source %d\ttarget %d\n" % (n, n * n) for n in range(90)), packing)
    name = f"p.tsv{packing}"
    for length in range(2, len(data)):
        message = fail(write(tmp_path, name, data[:length]))
        assert name in message
        assert "truncated" in message or "not compressed" in message


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_truncated_file_names_the_line_reached(tmp_path, packing):
    generator = random.Random(1)
    rows = [b"%d\t%d\n" % (n, generator.getrandbits(200)) for n in range(20_000)]
    data = pack(b"".join(rows), packing)
    message = fail(write(tmp_path, f"p.tsv{packing}", data[: len(data) * 3 // 4]))
    assert "truncated" in message
    line = int(message.partition("near line ")[2].split()[0])
    assert 10_000 < line < 16_000


def test_a_corrupt_gz_file_is_refused(tmp_path):
    data = bytearray(gzip.compress(b"a\tb\n" * 1000, mtime=0))
    data[-6] ^= 0xFF  # the checksum
    assert "corrupt" in fail(write(tmp_path, "p.tsv.gz", bytes(data)))


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("p.tsv.gz", GOOD.encode(), "not compressed with gzip"),
        ("p.tsv.zst", GOOD.encode(), "not compressed with zstd"),
        ("p.tsv", gzip.compress(GOOD.encode(), mtime=0), "ends in .gz"),
        ("p.tsv", dump("parquet", PAIRS), "data.format=parquet"),
        ("p.parquet", GOOD.encode(), "not a complete Parquet file"),
        ("p.parquet", dump("parquet", PAIRS)[:-9], "not a complete Parquet file"),
        ("p.parquet.gz", gzip.compress(b"x", mtime=0), "unpack the file"),
        ("p.tsv", "a\tb\n".encode("utf-16-le"), "data.encoding=utf-16-le"),
        ("p.tsv", "ä\tЖ\n".encode("utf-16-be"), "data.encoding=utf-16-be"),
        ("p.jsonl", GOOD.encode(), "not JSONL"),
        ("p.jsonl", b"{}\n", "not JSONL"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name, data, found):
    message = fail(write(tmp_path, name, data))
    assert found in message
    assert name in message


def test_a_parquet_column_of_numbers_with_fractions_is_refused(tmp_path):
    pq.write_table(pa.table({"source": ["a"], "target": [1.5]}), tmp_path / "p.parquet")
    assert "'target' holds double" in fail(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (
            b"\x25\x02\x18\x06source",
            b"\x25\x02\x18\x06sou\xffce",
            "not a complete Parquet file",
        ),  # a name
        (b"\x16\x06\x19\x1c", b"\x16\x08\x19\x1c", "should have 4 rows, and has 3"),
        # A column that is optional no more; pyarrow 26.0 ended the process when asked about it.
        (b"\x25\x02\x18\x06source", b"\x25\x00\x18\x06source", "corrupt"),
    ],
)
def test_a_parquet_file_with_a_changed_footer_is_refused(tmp_path, old, new, found):
    content = dump("parquet", PAIRS)
    assert content.count(old) == 1
    assert found in fail(write(tmp_path, "p.parquet", content.replace(old, new)))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_an_endless_line_is_refused_before_it_fills_the_memory(tmp_path, packing):
    data = (
        gzip.compress(b"x" * (66 << 20), 1)
        if packing == ".gz"
        else pack(b"x" * (66 << 20), packing)
    )
    path = write(tmp_path, f"p.tsv{packing}", data)
    assert f"{path}:1: a line of over 64 MiB" in fail(path)


def test_a_zstd_file_cannot_ask_for_much_memory(tmp_path):
    # A frame of nothing but its header: a window of 1 GiB, and one block.
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([20 << 3]) + b"\x0b\x00\x00a"
    message = fail(write(tmp_path, "p.tsv.zst", frame))
    assert "corrupt" in message
    assert "memory" in message


def test_many_compressed_streams_without_a_line_end_are_read_in_time(tmp_path):
    data = gzip.compress(b"a", mtime=0) * 40_000 + gzip.compress(b"\tb\n", mtime=0)
    began = time.process_time()
    assert read(write(tmp_path, "p.tsv.gz", data), max_characters=50_000) == [("a" * 40_000, "b")]
    assert time.process_time() - began < 10  # 0.6 s; 40 s where each part looks at all before it


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ('s,t\n"a,b\nc,d\n', "line 4: unexpected end of data"),
        ('s,t\n"a,b\nc,"d"\n', "line 4: ',' expected after '\"'"),
        ('s,t\n"a,b\n' + "c,d\n" * 40_000, ""),  # the limit of csv, which other tests may raise
        ('s,t\n"a,b', "line 3: unexpected end of data"),
        # Each line ends a field and opens the next: the record would be the whole file.
        ("s,t\n" + 'x","\n' * 70_000, "it goes on for over 65,000 lines"),
    ],
    ids=["end", "next quote", "long field", "last line", "many lines"],
)
def test_a_quote_that_is_not_closed_is_one_error_where_it_opens(tmp_path, rows, found):
    path = write(tmp_path, "p.csv", f"source,target\n{rows}")
    began = time.process_time()
    message = fail(path, broken_rows="skip")
    assert message.startswith(f"{path}:3: a quote in this row is opened and not closed")
    assert found in message
    assert "data.format" in message
    assert time.process_time() - began < 10


def test_a_quoted_field_of_many_lines_is_one_row(tmp_path):
    text = "line\n" * 20_000
    path = write(tmp_path, "p.csv", f'source,target\n"{text}",b\nc,d\n')
    assert read(path, max_characters=200_000) == [(text, "b"), ("c", "d")]


def test_parallel_files_of_unequal_length_are_refused_with_both_counts(tmp_path):
    paths = [write(tmp_path, "a.txt", "a\n" * 5), write(tmp_path, "b.txt", "b\n" * 3)]
    for order in (paths, paths[::-1]):
        message = fail(*order, broken_rows="skip")
        assert f"{paths[0]} has 5 lines" in message
        assert f"{paths[1]} has 3 lines" in message


def test_an_invalid_line_of_parallel_text_names_its_file(tmp_path):
    left = write(tmp_path, "a.txt", "a\n\nc\nd\n")
    right = write(tmp_path, "b.txt", b"a\nb\n\xff\nd\n")
    errors = RowErrors()
    found = list(read_pairs([left, right], SKIP, errors))
    assert [pair.line for pair in found] == [1, 4]
    assert errors.counts == {"empty side": 1, "invalid UTF-8": 1}
    assert f"{left}:2: " in errors.report()
    assert f"{right}:3: " in errors.report()


def test_the_number_of_files_must_fit_the_format(tmp_path):
    path = write(tmp_path, "p.tsv", GOOD)
    assert "two parallel texts" in fail(path, path)
    assert "two parallel texts" in fail(path, path, path, format="parallel")
    assert read(path, format="parallel") == read(path)  # trained on two files, scored on one
    assert "expected one" in fail()
    assert read(path, path, format="parallel") == [(GOOD.strip(), GOOD.strip())]


@quick
@given(
    data=st.binary(max_size=200)
    | st.text('ab\t\n\r",{}[]:\\u0"source\0', max_size=60).map(str.encode)
)
@pytest.mark.parametrize(
    "name", ["p.tsv", "p.csv", "p.jsonl", "p.parquet", "p.tsv.gz", "p.jsonl.zst"]
)
def test_any_bytes_give_pairs_or_a_data_error(tmp_path, name, data):
    for content in (data, pack(data, Path(name).suffix)):
        path = write(tmp_path, name, content)
        for chosen in (DEFAULT, SKIP):
            try:
                for pair in read_pairs([path], chosen):
                    assert pair.source.strip()
                    assert pair.target.strip()
                    assert "\0" not in pair.source + pair.target
                    (pair.source + pair.target).encode()
            except DataError:
                continue
        try:
            lines = [row.line for row in read_sources(path, DEFAULT)]
        except DataError:
            continue
        assert lines == sorted(set(lines))


# Any table, any bytes, any settings

PACKINGS = ["", ".gz", ".zst"]
NAMES = [f"p.{layout}{packing}" for layout in ("tsv", "csv", "jsonl") for packing in PACKINGS]
NAMES.append("p.parquet")
wild_text = st.text(st.characters(exclude_categories=[]), max_size=12) | st.sampled_from(
    ["", " ", "\0", "\ud800", "a\tb", "a\nb", "a\r\nb", '"', 'a"b,c', "\ufeff", "x" * 25, "<V> a"]
)
plain_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
tables = st.lists(st.tuples(wild_text | plain_text, wild_text | plain_text), min_size=1, max_size=8)


def dump_wild(layout: str, pairs: Sequence[tuple[str, str]]) -> bytes:
    """Write rows as they are, also those that are no text."""
    if layout == "parquet":
        columns = [
            [text.encode(errors="surrogatepass") for text in side]
            for side in zip(*pairs, strict=True)
        ]
        sink = io.BytesIO()
        pq.write_table(pa.table(columns, ["source", "target"]), sink)
        return sink.getvalue()
    if layout == "jsonl":
        return dump("jsonl", pairs)
    text = io.StringIO(newline="")
    if layout == "csv":
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("source", "target"), *pairs])
    else:
        text.write("".join(f"{source}\t{target}\n" for source, target in pairs))
    return text.getvalue().encode(errors="surrogatepass")


def is_pair(source: str, target: str, longest: int) -> bool:
    """Return whether two texts may be trained on."""
    sides = (source, target)
    surrogates = any(0xD800 <= ord(character) < 0xE000 for side in sides for character in side)
    return not surrogates and all(
        side and not side.isspace() and "\0" not in side and len(side) <= longest for side in sides
    )


@quick
@given(rows=tables)
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("p.tsv")])
def test_a_row_of_any_table_is_read_back_or_a_row_error_with_its_place(tmp_path, name, rows):
    layout, packing = name.split(".")[1], Path(name).suffix
    path = write(tmp_path, name, pack(dump_wild(layout, rows), packing))
    good = [row for row in rows if is_pair(*row, 20)]
    if not good:
        message = fail(path, broken_rows="skip", long_rows="skip", max_characters=20)
        assert f"none of its {len(rows)} rows" in message
        return
    pairs, errors = skip_errors(path, max_characters=20)
    assert pairs == good
    assert errors.total == len(rows) - len(good)
    if errors.total:
        message = fail(path, max_characters=20)
        assert f"{errors.total} of {len(rows)} rows cannot be used" in message
        assert message.count(f"{path}:") == 1 + min(10, errors.total)


@quick
@given(rows=tables)
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_each_line_of_any_tsv_is_a_pair_or_a_row_error_with_its_number(tmp_path, packing, rows):
    data = dump_wild("tsv", rows)
    path = write(tmp_path, f"p.tsv{packing}", pack(data, packing))
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while len(lines) > 1 and lines[-1] in (b"", b"\r"):
        lines.pop()
    wanted, refused = [], 0
    for number, line in enumerate(lines, 1):
        sides = line.decode(errors="surrogateescape").removesuffix("\r").split("\t")
        if len(sides) == 2 and is_pair(*sides, 20):
            wanted.append((*sides, number))
        else:
            refused += 1
    errors = RowErrors()
    columns = SKIP.model_copy(update={"max_characters": 20, "source": "1", "target": "2"})
    pairs, message = attempt(read_pairs(path, columns, errors))
    found = [(pair.source, pair.target, pair.line) for pair in pairs]
    if message:
        assert not wanted or first_width(lines) != 2
    elif first_width(lines) == 2:
        assert found == wanted
        assert errors.total == refused
    else:
        assert len(found) + errors.total == len(lines)


def attempt(rows: Iterable[Row]) -> tuple[list[Row], str]:
    """Return what came before a DataError, and its message; "" without one."""
    found: list[Row] = []
    try:
        found.extend(rows)
    except DataError as error:
        return found, str(error)
    return found, ""


def first_width(lines: Sequence[bytes]) -> int:
    """Return how many columns the first line that is not empty has; it tells those of all."""
    return next((line.count(b"\t") + 1 for line in lines if line.removesuffix(b"\r")), 0)


@quick
@given(left=st.lists(wild_text, min_size=1), right=st.lists(wild_text, min_size=1))
def test_each_line_of_two_files_is_a_pair_or_refused_or_they_differ_in_length(
    tmp_path, left, right
):
    paths, lines = [], []
    for name, side in (("a.txt", left), ("b.txt.gz", right)):
        data = "".join(f"{text}\n" for text in side).encode(errors="surrogatepass")
        paths.append(write(tmp_path, name, pack(data, Path(name).suffix)))
        texts = data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape").split("\n")
        lines.append([text.removesuffix("\r") for text in texts[:-1]])
    if len(lines[0]) != len(lines[1]):
        assert "align them" in fail(*paths, broken_rows="skip", long_rows="skip")
        return
    wanted = [row for row in zip(*lines, strict=True) if is_pair(*row, 5000)]
    errors = RowErrors()
    pairs, message = attempt(read_pairs(paths, SKIP, errors))
    assert [(pair.source, pair.target) for pair in pairs] == wanted
    assert errors.total == len(lines[0]) - len(wanted)
    assert bool(message) == (not wanted)


changes = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 3), st.binary(max_size=3)),
    min_size=1,
    max_size=4,
)
any_settings = st.builds(
    DataSettings,
    header=st.sampled_from(["auto", "yes", "no"]),
    source=st.sampled_from(["auto", "1", "2", "source", "0", "x", ""]),
    target=st.sampled_from(["auto", "1", "2", "target", "9"]),
    features=st.lists(st.sampled_from(["3", "tag", "1", ""]), max_size=2),
    leading_tags=st.booleans(),
    broken_rows=st.sampled_from(["error", "skip"]),
    long_rows=st.sampled_from(["error", "skip"]),
    max_characters=st.sampled_from([1, 5, 5000]),
)


@quick
@given(changes=changes, chosen=any_settings)
@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_gives_pairs_or_a_data_error_under_any_settings(
    tmp_path, name, changes, chosen
):
    layout, packing = name.split(".")[1], Path(name).suffix
    data = bytearray(pack(dump(layout, PAIRS), packing))
    for place, length, new in changes:
        at = place % len(data) if data else 0
        data[at : at + length] = new
    path = write(tmp_path, name, bytes(data))
    pairs, message = attempt(read_pairs(path, chosen))
    assert not message or str(path) in message
    for pair in pairs:
        assert is_pair(pair.source, pair.target, chosen.max_characters)
        "".join(pair.features).encode()
    rows, message = attempt(read_sources(path, chosen, with_columns=True))
    assert not message or str(path) in message
    assert [row.line for row in rows] == sorted({row.line for row in rows})
    for row in rows:
        assert not row.columns or isinstance(json.loads(row.columns), dict)


# Rows to predict


def sources(data: str | bytes, **options: object) -> list[Source | InvalidRow]:
    stream = io.BytesIO(data.encode() if isinstance(data, str) else data)
    return list(read_sources(stream, DataSettings.model_validate(options)))


def test_lines_of_a_stream_are_sources_in_their_order():
    assert sources("b\r\na\nb\n") == [Source("b", (), 1), Source("a", (), 2), Source("b", (), 3)]
    assert sources("one column", source="lemma", target="form")[0] == Source("one column", (), 1)
    assert sources("") == []


def test_a_row_that_cannot_be_used_keeps_its_place():
    long = "x" * 5001
    found = sources(b"a\n\n\xff\nb\0\n" + long.encode() + b"\nc\td\ne\n \n\n")
    assert [row.line for row in found] == list(range(1, 10))
    assert [type(row) for row in found] == [
        Source,
        *[InvalidRow] * 5,
        Source,
        InvalidRow,
        InvalidRow,
    ]
    bad = [row.reason for row in found if isinstance(row, InvalidRow)]
    assert "empty" in bad[0]
    assert "UTF-8" in bad[1]
    assert "NUL" in bad[2]
    assert "5001" in bad[3]
    assert bad[4] == "2 columns, expected 1"
    assert all(row.file == "standard input" for row in found if isinstance(row, InvalidRow))


def test_sources_have_the_columns_of_training_with_or_without_target():
    assert sources("a\tb\n") == [Source("a", (), 1)]
    chosen = {"features": ("3",)}
    assert sources("a\tb\tde\n", **chosen) == [Source("a", ("3=de",), 1)]
    assert sources("a\tde\n", **chosen) == [Source("a", ("3=de",), 1)]
    named = {"header": "yes", "features": ("tag",), "source": "lemma", "target": "form"}
    assert sources("tag\tlemma\nV\tgo\n", **named) == [Source("go", ("tag=V",), 2)]


def test_a_feature_column_that_is_missing_is_refused():
    with pytest.raises(DataError, match=r"standard input: data\.features=3"):
        sources("a\n", features=("3",))


def test_sources_are_read_in_every_format(tmp_path):
    wanted = [Source("a", (), 1), Source("b", (), 2)]
    assert sources('{"source": "a"}\n{"source": "b"}\n', format="jsonl") == wanted
    assert sources("a\tx\nb", format="parallel") == [Source("a\tx", (), 1), Source("b", (), 2)]
    path = write(
        tmp_path, "s.jsonl.gz", gzip.compress(b'{"source":"a"}\n{"source":"b"}\n', mtime=0)
    )
    assert list(read_sources(path, DEFAULT)) == wanted
    pq.write_table(pa.table({"source": ["a", "b"]}), tmp_path / "s.parquet")
    assert list(read_sources(str(tmp_path / "s.parquet"), DEFAULT)) == wanted
    with pytest.raises(DataError, match="cannot be read from a stream"):
        sources(b"", format="parquet")


def test_the_whole_row_distinguishes_columns_with_the_same_name(tmp_path):
    path = write(tmp_path, "s.csv", "source,note,note,\na,b,c,d\n")
    (row,) = read_sources(path, DEFAULT, with_columns=True)
    wanted = {"source": "a", "note": "b", "note (3)": "c", "": "d"}
    assert json.loads(row.columns) == wanted
    assert list_source_columns(path, DEFAULT) == tuple(wanted)
    columns = [pa.array([text]) for text in "abcd"]
    pq.write_table(pa.table(columns, ["source", "note", "note", ""]), tmp_path / "s.parquet")
    (row,) = read_sources(tmp_path / "s.parquet", DEFAULT, with_columns=True)
    assert json.loads(row.columns) == wanted


def test_the_whole_row_of_a_parquet_file_holds_values_that_json_does_not_have(tmp_path):
    table = pa.table(
        {
            "source": ["a", "b"],
            "time": pa.array([1, None], pa.timestamp("ns")),
            "bytes": [b"x", b"\xff"],
            "count": [1, None],
        }
    )
    pq.write_table(table, tmp_path / "s.parquet")
    first, second = read_sources(tmp_path / "s.parquet", DEFAULT, with_columns=True)
    assert json.loads(first.columns) == {
        "source": "a", "time": "1970-01-01 00:00:00.000000001", "bytes": "x", "count": 1,
    }  # fmt: skip
    assert json.loads(second.columns) == {"source": "b", "time": None, "bytes": None, "count": None}
    pq.write_table(pa.table({"source": [b"\xff"]}), tmp_path / "s.parquet")  # the text to predict
    [bad] = read_sources(tmp_path / "s.parquet", DEFAULT)
    assert "byte 0xff" in bad.reason


def test_leading_tags_of_sources_become_features():
    assert sources("<V> go\n<V>\n", leading_tags=True) == [
        Source("go", ("<V>",), 1),
        InvalidRow(2, "standard input", "the source is empty"),
    ]


def test_empty_first_lines_do_not_define_the_columns(tmp_path):
    wanted = [InvalidRow(1, "standard input", "the line is empty"), Source("a", (), 2)]
    assert sources("\na\tb\n") == wanted
    assert sources('\n{"source": "a"}\n', format="jsonl") == wanted
    assert sources("\na,b\n", format="csv", header="no") == wanted
    pairs, errors = skip_errors(write(tmp_path, "p.csv", "\nsource,target\na,b\n"))
    assert pairs == [("a", "b")]
    assert errors.counts == {"empty line": 1}


def test_a_pipe_gives_rows_before_it_is_closed():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as sink:
        sink.write(b"a\nb\n")
        rows = read_sources(stream, DEFAULT)
        assert next(rows) == Source("a", (), 1)
        rows.close()


# Statistics


def test_statistics_count_pairs_sources_tags_and_symbols(tmp_path):
    rows = [f"<V> go {n % 7}\twent {n}\n" for n in range(50)]
    found = collect_statistics(read_pairs(write(tmp_path, "p.tsv", "".join(rows))))
    assert (found.num_pairs, found.num_sources, found.all_tagged) == (50, 7, True)
    assert found.source.mean_symbols == 2
    assert found.target.num_rare_symbols == 50


def test_statistics_of_many_pairs_are_those_of_rows_evenly_spread(monkeypatch):
    monkeypatch.setattr(statistics, "MEASURED_ROWS", 100)
    words = [Pair(f"w{n}", "a", (), n, "") for n in range(300)]
    texts = [Pair(f"a long text {n}", "b", (), n, "") for n in range(300)]
    found = collect_statistics(words + texts)
    assert (found.num_pairs, found.num_sources) == (600, 75)
    assert found.target.characters == {"a", "b"}
    assert 2 < found.source.mean_symbols < 3


# Splits


@given(source=st.text(max_size=20), valid=st.floats(0, 0.5), test=st.floats(0, 0.49))
@settings(deadline=None, max_examples=50)
def test_a_source_is_in_one_split_whatever_its_features(source, valid, test):
    split = split_of(source, (), valid, test)
    assert split == split_of(source, ("<V>", "3=x"), valid, test)
    assert split != "valid" or valid > 0
    assert split != "test" or test > 0


def test_a_source_in_two_unicode_forms_is_in_one_split():
    for n in range(200):
        forms = [unicodedata.normalize(form, f"é한 {n}") for form in ("NFC", "NFD")]
        assert len({split_of(form, (), 0.3, 0.3) for form in forms}) == 1


def test_splits_have_about_the_requested_sizes():
    names = [split_of(f"source {n}", (), 0.05, 0.1) for n in range(20_000)]
    assert 0.045 < names.count("valid") / len(names) < 0.055
    assert 0.09 < names.count("test") / len(names) < 0.11


def test_holding_out_a_test_leaves_the_validation_as_it_was():
    names = [(split_of(str(n), (), 0.1, 0.0), split_of(str(n), (), 0.1, 0.2)) for n in range(500)]
    assert {pair for pair in names if "valid" in pair} == {("valid", "valid")}


def test_splits_are_the_same_on_every_machine():
    golden = {"walk": "valid", "Häuser": "train", "Haus": "test"}
    assert {source: split_of(source, (), 0.33, 0.33) for source in golden} == golden
