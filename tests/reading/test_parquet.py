"""Claims about Parquet files: all ways of writing are read, damage is refused, memory is bounded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dragoman.errors import DataError
from dragoman.reading.pairs import read_pairs, read_sources
from dragoman.settings import DataSettings

MIB = 1 << 20
SKIP = DataSettings(broken_rows="skip", long_rows="skip")
LONG = "x" * MIB


def write(path: Path, sources: object, **options: object) -> Path:
    table = pa.table({"source": sources, "target": ["b"] * len(sources)})
    pq.write_table(table, path, compression="zstd", **options)
    return path


@contextmanager
def watch_memory() -> Iterator[pa.MemoryPool]:
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


def test_long_texts_in_small_pages_are_read_few_at_a_time(tmp_path):
    texts = [f"{LONG}{number}" for number in range(130)] + ["a"]
    options = {"use_dictionary": False, "data_page_size": MIB, "write_batch_size": 1}
    path = write(tmp_path / "p.parquet", texts, **options)
    with watch_memory() as pool:
        assert [pair.source for pair in read_pairs(path, SKIP)] == ["a"]
    assert pool.max_memory() < 120 * MIB


TEXTS = ["a", None, "b" * 5000, "é", "", "c" * 70] * 300
TABLE = pa.table(
    {
        "source": [text or "x" for text in TEXTS],
        "target": pa.array([text or "y" for text in TEXTS]).dictionary_encode(),
        "null": TEXTS,
        "lists": [[1, 2], None, []] * 600,
        "structs": [{"source": "a", "b": [1.0]}, None, {"source": None, "b": None}] * 600,
        "fixed": pa.array([b"ab", None, b"cd"] * 600, pa.binary(2)),
        "times": pa.array([1, None, 3] * 600, pa.timestamp("ns", tz="Europe/Berlin")),
        "flags": [True, False, None] * 600,
    }
)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "lz4", "brotli"])
@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("page_size", [100, MIB])
def test_every_way_of_writing_is_read_completely(
    tmp_path, version, codec, use_dictionary, page_size
):
    path = tmp_path / "p.parquet"
    pq.write_table(
        TABLE,
        path,
        data_page_version=version,
        compression=codec,
        use_dictionary=use_dictionary,
        data_page_size=page_size,
        dictionary_pagesize_limit=page_size,
        row_group_size=700,
        write_batch_size=64,
        write_page_checksum=True,
        write_page_index=version == "2.0",
    )
    found = [(pair.source, pair.target) for pair in read_pairs(path, DataSettings())]
    wanted = TABLE.select(["source", "target"]).to_pylist()
    assert found == [(row["source"], row["target"]) for row in wanted]
    assert len(list(read_sources(path, DataSettings(), with_columns=True))) == 1800


def test_a_broken_header_of_a_page_is_refused(tmp_path):
    path = write(tmp_path / "p.parquet", ["a", "b"], use_dictionary=False)
    content = path.read_bytes()
    for broken in (b"\xff" * 30, b"\x19" * 30, b"\x1c" * 30, bytes(30), b"\x15" + b"\x80" * 29):
        path.write_bytes(content[:4] + broken + content[34:])
        with pytest.raises(DataError, match="corrupt"):
            list(read_pairs(path, SKIP))


def test_a_changed_byte_of_a_page_with_a_checksum_is_found(tmp_path):
    path = write(tmp_path / "p.parquet", ["a" * 50, "b" * 50], write_page_checksum=True)
    content = bytearray(path.read_bytes())
    at = content.index(b"\x28\xb5\x2f\xfd") + 12  # in the first packed page
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="corrupt"):
        list(read_pairs(path, SKIP))


def test_a_footer_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "p.parquet"
    table = pa.table({"source": ["a"], "target": ["b"]})
    pq.write_table(table.replace_schema_metadata({str(n): "" for n in range(140_000)}), path)
    with pytest.raises(DataError, match=r"not a complete Parquet file: .*size limit"):
        list(read_pairs(path))
