"""How files are read that say nothing of it: headers, separators, quotes, encodings, line ends."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dragoman.commands.inspect import inspect
from dragoman.errors import DataError
from dragoman.reading.pairs import (
    InvalidRow,
    RowErrors,
    describe_layout,
    name_columns,
    read_pairs,
    read_sources,
)
from dragoman.settings import DataSettings, Settings

CASES = Path(__file__).with_name("cases")
HEADER, ROW = "the first line is the header", "the first line is a row, not a header"
OUTER = [(" abc ", " cba "), (" abd ", " dba "), (" abe ", " eba ")]
GERMAN = [("Tür", "t y ː ɐ"), ("öl", "ø ː l"), ("a;b", "x")]
LATIN = [("Tür", "rüT"), ("öl", "lö"), ("Grüße", "eßürG")]
WORDS = [("abc", "cba"), ("abd", "dba"), ("abe", "eba")]


def read(path: Path, **options: object) -> tuple[list[tuple[str, str]], str]:
    """Return the pairs of a file, and the line on how it is read."""
    errors = RowErrors()
    found = list(read_pairs(path, DataSettings.model_validate(options), errors))
    assert len(errors.layouts) <= 1
    return [(pair.source, pair.target) for pair in found], "".join(errors.layouts)


def read_text(folder: Path, name: str, data: str | bytes, **options: object):
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read(path, **options)


@pytest.mark.parametrize(
    ("name", "options", "pairs", "notes"),
    [
        ("german_excel.csv", {}, GERMAN, ["semicolons", HEADER, "not used: 'sprache'"]),
        ("german_excel_cp1252.csv", {"encoding": "cp1252"}, LATIN, ["CP1252", "semicolons"]),
        ("excel_unicode_text.txt", {}, [("été", "été"), ("日本", "本日")], ["UTF-16", HEADER]),
        ("utf16_without_bom.tsv", {"encoding": "utf-16-le"}, WORDS[:1], ["UTF-16-LE", HEADER]),
        ("sep_line.csv", {}, WORDS[:2], ["line 1 (sep=,) names the separator", HEADER]),
        ("headerless.csv", {}, WORDS, [ROW]),
        ("header.tsv", {}, WORDS[:2], [HEADER, "source 'input_text', target 'target_text'"]),
        ("capital_header_swapped.csv", {}, WORDS[:2], [HEADER, "source 'Source'"]),
        (
            "quoted.tsv",
            {},
            [('hello, "1"', "bonjour"), ("two\tcells", "deux"), ("plain", "simple")],
            ["quotes around a cell are not text"],
        ),
        ("space_before_quote.csv", {}, [("a, 1", "b, 1"), ("c, 2", "d, 2")], ["spaces", HEADER]),
        ("cr_only.tsv", {}, WORDS, ["carriage return"]),
        ("outer_spaces.tsv", {}, OUTER, [ROW]),
        ("array.json", {}, [("abc", "cba"), ("abd", "dba")], ["one JSON array"]),
        (
            "nested.jsonl",
            {"source": "translation.en", "target": "translation.de"},
            [("a house", "ein Haus"), ("a mouse", "eine Maus")],
            ["source 'translation.en', target 'translation.de'"],
        ),
        (
            "empty_targets.tsv",
            {"broken_rows": "keep_empty"},
            [("um", ""), ("hello um there", "hello there"), ("uh", "")],
            [ROW],
        ),
        (
            "records.jsonl",
            {},
            [
                (
                    "Invoice 17 of ACME, total 12.50",
                    '{"number": "17", "seller": "ACME", "total": "12.50"}',
                ),
                ("Bill of Bolt Ltd: 3.20", '{"seller": "Bolt Ltd", "total": "3.20"}'),
            ],
            ["source 'text', target 'record'"],
        ),
    ],
)
def test_each_case_gives_its_pairs_and_reports_what_was_found(name, options, pairs, notes):
    found, layout = read(CASES / name, **options)
    assert found == pairs
    for note in notes:
        assert note in layout
    inspection = inspect(CASES / name, Settings(data=DataSettings.model_validate(options)))
    assert inspection.notes[0] == layout == describe_layout([CASES / name], DataSettings(**options))


@pytest.mark.parametrize("num_plain", [150, 300, 20_000])
def test_quotes_are_never_text_in_silence_where_they_begin_late(tmp_path, num_plain):
    plain = "".join(f"plain {n}\ttext\n" for n in range(num_plain))
    text = plain + '"say ""no"" again"\tx\n' * 20
    if num_plain < 200:
        assert read_text(tmp_path, "p.tsv", text)[0][-1] == ('say "no" again', "x")
        return
    with pytest.raises(DataError, match=rf":{num_plain + 1}: .* quotes .* set data\.format=csv"):
        read_text(tmp_path, "p.tsv", text)
    asked = {"format": "csv", "separator": "tab"}
    assert read_text(tmp_path, "p.tsv", text, **asked)[0][-1] == ('say "no" again', "x")
    assert len(read_text(tmp_path, "p.tsv", text, format="tsv")[0]) == num_plain + 20
    assert len(read_text(tmp_path, "p.tsv", plain + '"Ja," sagte er.\tx\n' * 300)[0]) > 300


def test_text_in_another_encoding_is_refused_once_for_the_whole_file(tmp_path):
    cyrillic = "".join(f"слово{n}\tтест\n" for n in range(50))
    for options in ({}, {"broken_rows": "skip"}):
        with pytest.raises(DataError, match=r"the text is not UTF-8; set data.encoding .* cp1251"):
            read_text(tmp_path, "p.tsv", cyrillic.encode("cp1251"), **options)
    latin = "".join(f"Straße {n}\tGrün\n" for n in range(50)).encode("cp1252")
    with pytest.raises(
        DataError, match=r"'ß' in Windows-1252.*set data.encoding .* cp1252"
    ) as found:
        read_text(tmp_path, "p.tsv", latin)
    assert "\n" not in str(found.value)
    assert len(read_text(tmp_path, "p.tsv", latin, encoding="cp1252")[0]) == 50
    mixed = "süß\tx\n".encode() + latin
    assert len(read_text(tmp_path, "p.tsv", mixed, broken_rows="skip")[0]) == 1


def test_text_in_another_encoding_is_refused_with_a_guess():
    with pytest.raises(DataError, match=r"'ü' in Windows-1252(.|\n)*data\.encoding"):
        read(CASES / "german_excel_cp1252.csv")
    with pytest.raises(DataError, match=r"looks like UTF-16 .* set data.encoding=utf-16-le"):
        read(CASES / "utf16_without_bom.tsv")


@pytest.mark.parametrize(
    ("name", "line", "is_header"),
    [
        ("p.tsv", "word\tphonemes", True),
        ("p.tsv", "English\tGerman", True),
        ("p.tsv", "inputText\toutputText", True),
        ("p.tsv", "Wort\tword", False),  # a German-English dictionary
        ("p.tsv", "it\tes", False),  # words, and codes of languages
        ("p.tsv", "some source\tsome target", False),
        ("p.tsv", "source\tsource", False),
        ("p.csv", "en,de", True),
        ("p.csv", "id,word", True),
        ("p.csv", "hello,bonjour", False),
    ],
)
def test_usual_names_are_a_header(tmp_path, name, line, is_header):
    separator = "," if name == "p.csv" else "\t"
    found, layout = read_text(tmp_path, name, f"{line}\nx{separator}y\n")
    assert (HEADER if is_header else ROW) in layout
    assert found == [("x", "y")] if is_header else [tuple(line.split(separator)), ("x", "y")]


@pytest.mark.parametrize(
    ("names", "features", "source"),
    [
        ("id,Source", (), 1),
        ("id,word", (), 1),
        ("tense,Input", ("tense",), 1),
        ("word class,lemma", ("Word Class",), 1),
        ("word,lemma", (), 0),  # two names for a source: the first column, as in training
        ("laut,wort", (), 0),  # the target is named too: the first column, as in training
    ],
)
def test_rows_to_predict_have_their_source_by_name(tmp_path, names, features, source):
    path = tmp_path / "p.csv"
    path.write_text(f"{names}\nx,y\n")
    [row] = read_sources(path, DataSettings(features=features))
    assert row.source == "xy"[source]


def test_columns_that_the_settings_name_are_a_header(tmp_path):
    found, layout = read_text(tmp_path, "p.tsv", "foo\tbar\na\tb\n", source="bar", target="foo")
    assert found == [("b", "a")]
    assert HEADER in layout


def test_a_row_is_never_lost_where_the_header_is_set(tmp_path):
    assert read_text(tmp_path, "p.csv", "source,target\na,b\n", header="no")[0][0] == (
        "source",
        "target",
    )
    assert read_text(tmp_path, "q.csv", "x,y\na,b\n", header="yes")[0] == [("a", "b")]


def test_a_table_that_predict_writes_is_read_back(tmp_path):
    names = "source\tline\tprediction\tscore\tconfidence\tis_complete\terror"
    row = '"a\t1\tb""\t-0.5\t0.9\ttrue\t'
    path = tmp_path / "out.tsv"
    path.write_text(f"{names}\n{row}\n")
    assert [one.source for one in read_sources(path, DataSettings())] == ['"a']
    assert read(path)[0] == [('"a', 'b""')]


def test_separators_are_set_or_found(tmp_path):
    pairs = [("a", "b"), ("c", "d")]
    assert read_text(tmp_path, "a.csv", "a\tb\nc\td\n")[0] == pairs
    assert read_text(tmp_path, "b.txt", "a;b\nc;d\n", separator=";")[0] == pairs
    assert read_text(tmp_path, "c.csv", "a|b\nc|d\n", separator="|")[0] == pairs
    assert read_text(tmp_path, "d.csv", '"a"\tb\nc\td\n', separator="tab")[0] == pairs
    assert read_text(tmp_path, "e.csv", '"sep=|"\na|b\nc|d\n')[0] == pairs
    assert read_text(tmp_path, "f.csv", "a,b;x\nc,d;x\n")[0] == [("a", "b;x"), ("c", "d;x")]


def test_a_row_after_the_separator_line_keeps_its_number(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("sep=;\na;b\nc;d;e\n")
    with pytest.raises(DataError, match=r"p\.csv:3: 3 columns"):
        list(read_pairs(path))


def test_quotes_in_tsv_are_text_unless_they_must_be_syntax(tmp_path):
    spoken = '"Yes."\t"Oui."\n"No."\t"Non."\n'
    found, layout = read_text(tmp_path, "p.tsv", spoken)
    assert found[0] == ('"Yes."', '"Oui."')
    assert "quotes around a cell are text" in layout
    assert read_text(tmp_path, "p.tsv", spoken, format="csv", separator="tab")[0][0] == (
        "Yes.",
        "Oui.",
    )
    unclosed = '"Yes, he said.\ta\nGo ""home"".\tb\n'
    assert read_text(tmp_path, "q.tsv", unclosed)[0][0] == ('"Yes, he said.', "a")
    text = (CASES / "quoted.tsv").read_text()
    assert read_text(tmp_path, "r.tsv", text, format="tsv", broken_rows="skip")[0][0] == (
        '"hello, ""1"""',
        "bonjour",
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_names_the_encoding(tmp_path, encoding):
    rows = "".join(f"Häuser {n}\tЖ😀 {n}\r\n" for n in range(9000))  # several chunks
    found, _ = read_text(tmp_path, "p.tsv", rows.encode(encoding))
    assert found == [(f"Häuser {n}", f"Ж😀 {n}") for n in range(9000)]


@pytest.mark.parametrize("encoding", ["shift_jis", "gb18030", "euc_kr", "utf-16-be"])
def test_any_encoding_can_be_set(tmp_path, encoding):
    text = "한국" if encoding == "euc_kr" else "日本"
    rows = f"{text}\tx\n" * 9000
    found, _ = read_text(tmp_path, "p.tsv", rows.encode(encoding), encoding=encoding)
    assert found == [(text, "x")] * 9000


def test_bytes_that_an_encoding_does_not_have_are_row_errors(tmp_path):
    (tmp_path / "p.tsv").write_bytes(b"a\tb\n\x81\tb\n")
    errors = RowErrors()
    found = read_pairs(
        tmp_path / "p.tsv", DataSettings(encoding="cp1252", broken_rows="skip"), errors
    )
    assert len(list(found)) == errors.total == 1
    (tmp_path / "q.tsv").write_bytes("a\tb\n".encode("utf-16") + b"\n")
    with pytest.raises(DataError, match=r"near line 1 the text is not utf-16"):
        read(tmp_path / "q.tsv")


def test_wrong_names_of_encodings_and_separators_are_refused():
    for wrong in ({"encoding": "utf-99"}, {"encoding": "zip"}, {"separator": ";;"}):
        with pytest.raises(ValueError, match="expected"):
            DataSettings.model_validate(wrong)


def test_a_stream_is_read_line_by_line_as_it_is():
    stream = io.BytesIO(b'source\ttarget\n"a ""b"""\tc\n')
    found = [row.source for row in read_sources(stream, DataSettings())]
    assert found == ["source", '"a ""b"""']


def test_an_array_is_read_in_parts_with_the_line_of_each_object(tmp_path):
    rows = [{"source": f"Häuser {n}", "target": {"n": n, "ok": True}} for n in range(5000)]
    path = tmp_path / "p.json"
    for indent in (None, 2):
        path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
        found = list(read_pairs(path))
        assert [pair.source for pair in found] == [row["source"] for row in rows]
        assert found[7].target == '{"n": 7, "ok": true}'
        lines = path.read_text().split("\n")
        assert all(pair.source in "".join(lines[pair.line - 1 : pair.line + 2]) for pair in found)
    (row, *_) = read_sources(path, DataSettings(), with_columns=True)
    assert json.loads(row.columns) == rows[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"source": "a", "target": "b"}', "the array has no end"),
        ('[{"source": "a", "target": "b"},\n{"source": "a" "target"}]', ":2: invalid JSON"),
        ('[{"source": "a", "target": "b"}] x', "after the end of the array"),
        ('[{"source": "a", "target": "b"}, 5]', "not a JSON object"),
        ("[1, 2]", "not JSONL"),
        ("[]", "not JSONL"),
    ],
)
def test_an_invalid_array_is_refused(tmp_path, text, found):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(DataError, match=found):
        list(read_pairs(tmp_path / "p.json"))


@pytest.mark.parametrize("options", [{}, {"target": "target"}])
@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_objects_without_a_side_do_not_give_the_columns(tmp_path, name, options):
    rows = [{"source": "a", "note": "x"}, {"source": "b", "note": "y", "target": "c"}]
    text = json.dumps(rows) if name == "p.json" else "".join(f"{json.dumps(row)}\n" for row in rows)
    pairs, layout = read_text(tmp_path, name, text, broken_rows="skip", **options)
    assert pairs == [("b", "c")]
    assert "target 'target'" in layout
    path = tmp_path / "sources.jsonl"
    path.write_text('{"id": 1}\n{"id": 2, "source": "b"}\n')
    first, second = read_sources(path, DataSettings())
    assert isinstance(first, InvalidRow)
    assert second.source == "b"


def test_a_json_object_that_would_fill_the_memory_is_an_over_long_row(tmp_path):
    path = tmp_path / "p.jsonl"
    numbers = "1," * (1 << 21)
    path.write_text(f'{{"source": "a", "target": "b"}}\n{{"source": "a", "k": [{numbers}1]}}\n')
    errors = RowErrors()
    assert len(list(read_pairs(path, DataSettings(long_rows="skip"), errors))) == 1
    assert errors.counts == {"over-long side": 1}


@pytest.mark.parametrize("depth", [500, 3000])
def test_an_object_nested_too_deeply_is_a_row_error(tmp_path, depth):
    nested = '{"a":' * depth + "1" + "}" * depth
    path = tmp_path / "p.jsonl"
    path.write_text(
        f"""{{"source": "a", "target": "b"}}\n{{"source": {nested}, "target": "b"}}\n"""
    )
    errors = RowErrors()
    skipping = DataSettings(broken_rows="skip")
    rows = list(read_pairs(path, skipping, errors))
    assert [row.line for row in rows] == [1]
    assert errors.examples[0].line == 2


def test_a_nested_null_is_empty_and_a_missing_field_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"t": {"a": "x", "b": "y"}}\n{"t": {"a": "x", "b": null}}\n{"t": {"a": "x"}}\n'
    )
    errors = RowErrors()
    chosen = DataSettings(source="t.a", target="t.b", broken_rows="skip")
    assert len(list(read_pairs(path, chosen, errors))) == 1
    assert errors.counts == {"empty side": 1, "missing field": 1}


def test_empty_targets_are_errors_with_the_setting_that_keeps_them():
    with pytest.raises(DataError, match=r"data\.broken_rows=keep_empty"):
        read(CASES / "empty_targets.tsv")


def test_tmx_is_refused(tmp_path):
    path = tmp_path / "p.tmx"
    path.write_text("<tmx></tmx>")
    with pytest.raises(DataError, match="TMX is not read"):
        read(path)


def test_plain_lines_of_text_are_read_without_a_report(tmp_path):
    path, reported = tmp_path / "sources.txt", []
    path.write_text("one\ntwo\n")
    rows = list(read_sources(path, DataSettings(), report=reported.append))
    assert [row.source for row in rows] == ["one", "two"]
    assert reported == []


SHARDS = {"a.tsv": "a\tA\nb\tB\n", "b.tsv": "c\tC\n", "c.csv": "source,target\nd,D\n"}


def write_shards(folder):
    for name, text in SHARDS.items():
        (folder / name).write_text(text)


def test_several_files_are_read_one_after_the_other_by_name_and_pattern(tmp_path):
    write_shards(tmp_path)
    wanted = [("a", "a.tsv", 1), ("b", "a.tsv", 2), ("c", "b.tsv", 1), ("d", "c.csv", 2)]
    for paths in (
        [tmp_path / name for name in SHARDS],
        [tmp_path / "*.tsv", tmp_path / "c.csv"],
        str(tmp_path / "?.?sv"),
    ):
        found = list(read_pairs(paths))
        assert [(one.source, Path(one.file).name, one.line) for one in found] == wanted
    with pytest.raises(DataError, match="no file fits this pattern"):
        list(read_pairs(tmp_path / "*.jsonl"))


def test_a_folder_of_parquet_or_arrow_shards_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "arrow").mkdir()
    (tmp_path / "dataset_info.json").write_text("{}")
    for number in (1, 0):
        rows = [{"id": n, "t": {"en": f"{number}{n}", "de": f"x{n}"}} for n in range(3)]
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, tmp_path / f"{number}.parquet")
        with pa.ipc.new_stream(
            str(tmp_path / "arrow" / f"data-{number}.arrow"), table.schema
        ) as out:
            out.write_table(table)
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as out:
        out.write_table(table)
    nested = {"source": "t.en", "target": "t.de"}
    wanted = [(f"{number}{n}", f"x{n}") for number in range(2) for n in range(3)]
    settings = DataSettings.model_validate(nested)
    (tmp_path / "file.arrow").rename(tmp_path / "arrow" / "cache-1.arrow")
    for folder in (tmp_path, tmp_path / "arrow"):
        assert [(one.source, one.target) for one in read_pairs(folder, settings)] == wanted
    for file in ("0.parquet", "arrow/data-0.arrow", "arrow/cache-1.arrow"):
        assert read(tmp_path / file, **nested)[0] == wanted[:3]
        rows = [row.source for row in read_sources(tmp_path / file, settings)]
        assert rows == ["00", "01", "02"]
    with pytest.raises(DataError, match=r"t\.fr: there is no such column|t\.fr: no such column"):
        read(tmp_path / "0.parquet", source="t.fr", target="t.de")
    with pytest.raises(DataError, match="not a complete Arrow file"):
        read_text(tmp_path, "bad.arrow", b"ARROW1 and nothing")


def test_files_that_are_read_alike_are_described_together_and_others_by_themselves(tmp_path):
    for number in range(9):
        header = "b\tB\n" if number == 7 else "source\ttarget\n"
        (tmp_path / f"{number}.tsv").write_text(f"{header}a\tA\n")
    errors, pattern = RowErrors(), tmp_path / "*.tsv"
    assert len(list(read_pairs(pattern, None, errors))) == 10
    assert describe_layout([pattern], DataSettings()) == "\n".join(errors.layouts)
    first, other = errors.layouts
    assert first.startswith(f"{tmp_path / '0.tsv'} and 7 more: ")
    assert other.startswith(f"{tmp_path / '7.tsv'}: ")


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("jsonl", '{"en": "cat", "de": "Katze"}', '{"id": 1, "de": "Hund", "en": "dog"}'),
        ("tsv", "English\tGerman\ncat\tKatze", "german\tenglish\nHund\tdog"),
        ("csv", "en,de\ncat,Katze", "de,en\nHund,dog"),
        ("tsv", "word\tform\ncat\tKatze", "form\tword\nHund\tdog"),
        ("tsv", "form\tword\ncat\tKatze", "word\tform\nHund\tdog"),
    ],
)
def test_another_order_of_columns_turns_no_pair_around(tmp_path, name, first, second):
    plain, a, b = tmp_path / "plain.tsv", tmp_path / f"a.{name}", tmp_path / f"b.{name}"
    plain.write_text("mouse\tMaus\n")
    a.write_text(f"{first}\n")
    b.write_text(f"{second}\n")
    errors = RowErrors()
    pairs = [(one.source, one.target) for one in read_pairs([plain, a, b], None, errors)]
    assert pairs == [("mouse", "Maus"), ("cat", "Katze"), ("dog", "Hund")]
    layout = describe_layout([b], DataSettings(), before=[[plain], [a]])
    assert layout.partition(": ")[2] == errors.layouts[-1].partition(": ")[2]


def test_files_with_other_columns_need_usual_names(tmp_path):
    a, b, c = (tmp_path / f"{name}.jsonl" for name in "abc")
    a.write_text('{"en": "cat", "de": "Katze"}\n')
    b.write_text('{"target": "Hund", "source": "dog"}\n')
    c.write_text('{"de": "Maus", "fr": "souris"}\n')
    assert [one.source for one in read_pairs([a, b])] == ["cat", "dog"]
    with pytest.raises(DataError, match=r"c\.jsonl: .*'de', 'fr'; 'en' and 'de', .* data\.source"):
        list(read_pairs([a, c]))
    positions = DataSettings(source="1", target="2")
    assert [one.source for one in read_pairs([a, c], positions)] == ["cat", "Maus"]


@pytest.mark.parametrize("options", [{"source": "word"}, {"source": "1"}, {"target": "IPA"}])
def test_a_column_that_is_not_set_is_found_by_its_name(tmp_path, options):
    rows = "word\tnote\tipa\ncat\tx\tkæt\n"
    pairs, _ = read_text(tmp_path, "a.tsv", rows, header="yes", **options)
    assert pairs == [("cat", "kæt")]


def test_later_files_are_read_by_the_columns_of_training(tmp_path):
    train, other = tmp_path / "train.csv", tmp_path / "other.csv"
    train.write_text("Deutsch,English\nHund,dog\n")
    other.write_text("English,Deutsch,id\ncat,Katze,1\n")
    names = name_columns([train], DataSettings())
    assert names == ("Deutsch", "English")
    trained = DataSettings(columns=names)
    [pair] = read_pairs(other, trained, labels=())
    assert (pair.source, pair.target) == ("Katze", "cat")
    assert [row.source for row in read_sources(other, trained, labels=())] == ["Katze"]
    other.write_text("word,translation\ncat,Katze\n")  # without them as before
    assert [row.source for row in read_sources(other, trained, labels=())] == ["cat"]
    assert name_columns([train], DataSettings(source="2", target="1")) == ()


def test_a_pair_among_other_columns_must_be_chosen_with_features_too(tmp_path):
    rows = "id\tEnglish\tGerman\tlang\n1\tdog\tHund\tde\n"
    with pytest.raises(DataError, match=r"'lang'; choose the pair with data\.source=1"):
        read_text(tmp_path, "a.tsv", rows.encode(), features="lang")
    chosen = {"source": "English", "target": "German", "features": "lang"}
    assert read_text(tmp_path, "b.tsv", rows.encode(), **chosen)[0] == [("dog", "Hund")]


def test_a_packed_arrow_file_is_refused_as_such(tmp_path):
    for name in ("p.arrow.gz", "p.parquet.gz"):
        with pytest.raises(DataError, match="is compressed inside; unpack"):
            read_text(tmp_path, name, b"")


def test_a_pipe_is_read_as_often_as_a_file():
    for words in (["/dev/stdin"], ["-"]):
        code = (
            "import sys; from dragoman.reading.pairs import read_pairs\n"
            "for _ in range(2): print([pair.source for pair in read_pairs(sys.argv[1])])"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, *words],
            input=b"a\tA\nb\tB\n",
            capture_output=True,
            check=True,
        )
        assert found.stdout.decode() == "['a', 'b']\n" * 2
