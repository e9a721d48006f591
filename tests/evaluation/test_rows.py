import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.errors import DataError
from dragoman.evaluation.rows import Row, read_rows, write_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ROWS = st.builds(
    Row,
    source=TEXT,
    references=st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    hypothesis=TEXT,
    features=st.lists(TEXT, max_size=2).map(tuple),
    line=st.integers(0, 10**9),
    file=TEXT,
    is_complete=st.booleans(),
    score=st.none() | st.integers(-1000, 0).map(lambda n: n / 8),
    confidence=st.none() | st.integers(0, 16).map(lambda n: n / 16),
)


@given(rows=st.lists(ROWS, min_size=1, max_size=5))
def test_rows_come_back_as_they_were_written(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, rows, {"error": np.ones(len(rows))})
    assert read_rows(path) == rows
    contents = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    assert [content["exact_match"] for content in contents] == [row.is_exact for row in rows]
    assert all(content["error"] == 1.0 for content in contents)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "expected an object, found int"),
        ('{"source": "a", "references": ["b"]}', "'hypothesis' is missing"),
        ('{"source": 1, "references": ["b"], "hypothesis": "b"}', "'source' is int"),
        ('{"source": "a", "references": "b", "hypothesis": "b"}', "'references' is str"),
        ('{"source": "a", "references": [1], "hypothesis": "b"}', "holds what is not text"),
        ('{"source": "a", "references": [], "hypothesis": "b"}', "'references' is empty"),
        ('{"source": "\udcd8", "references": ["b"], "hypothesis": "b"}', "byte 0xd8 .* not UTF-8"),
        (
            f'{{"source": "a", "references": ["b"], "hypothesis": "b", "score": {"9" * 400}}}',
            "no finite number",
        ),
        ('{"source": "a", "references": ["b"], "hypothesis": "b", "line": true}', "'line' is bool"),
        ('{"source": "a", "references": ["b"], "hypothesis": "b", "line": -1}', "'line' is -1"),
        ('{"source": "a", "references": ["b"], "hypothesis": "b", "confidence": 5}', "from 0 to 1"),
    ],
)
def test_a_line_that_is_no_row_is_named(line, told, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = '{"source": "a", "references": ["b"], "hypothesis": "b"}\n'
    path.write_bytes(f"{good}{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=f"rows.jsonl:2: .*{told}"):
        read_rows(path)
