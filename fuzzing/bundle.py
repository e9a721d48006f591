"""Fuzzes what reads a model folder, guided by coverage: one of its files holds anything.

    python fuzzing/bundle.py fuzzing/corpus/bundle -max_total_time=3600

The first two bytes of an input choose the model and the file; the third says whether the rest is
the whole file or a list of edits (place, bytes to take out, bytes to put in) to a good one. What
must hold: a fault is a DragomanError; a tokenizer that loads gives back text, batch or one by one,
and survives being saved; settings that are read are read back from what is written of them.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import atheris
import numpy
from findings import Findings

with atheris.instrument_imports(include=["dragoman"]):
    from dragoman.tokenizers.unicode_form import from_unicode_form, to_unicode_form

    from dragoman.configuration import find_conflicts, list_set_values, read_settings
    from dragoman.errors import DragomanError
    from dragoman.evaluation.evaluation import read_evaluation
    from dragoman.evaluation.output_rows import Row, read_outputs, read_rows, write_rows
    from dragoman.model_folder.calibration import StoredCalibration, Threshold, read_calibration
    from dragoman.model_folder.folder import Bundle, dump_settings, read_bundle, write_bundle
    from dragoman.reading.pairs import Pair
    from dragoman.settings import DecodingSettings, Settings, SideSettings, TokenizerSettings
    from dragoman.tokenizers.tokenizer import UNKNOWN_ID, PairTokenizer, Tokenizer

SIDES = (
    SideSettings(kind="characters", unicode_form="nfd"),
    SideSettings(kind="symbols", separator=" "),
    SideSettings(kind="regex", pattern=r"\w+"),
    SideSettings(kind="bpe", vocab_size=264),
    SideSettings(kind="unigram", vocab_size=264),
)
FILES = (
    "config.yaml",
    "tokenizer.json",
    "metrics.json",
    "model.safetensors",
    "calibration.json",
    "token_counts.json",
    "evaluation/test/rows.jsonl",
    "evaluation/test/scores.json",
    "words",  # no file: settings as typed on the command line, parted by NULs
)
TEXTS = ("", "ab  c ", "\u00e9\u0301 \ud55c 1\n<pad>\0", "\U0001f600\u2028a b")
HEAD_BYTES = 3
_LARGEST_FILE = 1 << 16


def write_models(folder: Path) -> list[Path]:
    """Write a small good model folder for each kind of tokenizer."""
    pairs = [Pair("ab c", "AB C", ("<V>",), 1, "p"), Pair("ab \u00e9", "c", (), 2, "p")]
    models = []
    for number, side in enumerate(SIDES):
        sides = TokenizerSettings(source=side, target=side, shared=number % 2 == 1)
        bundle = Bundle(
            settings=Settings(tokenizer=sides),
            tokenizer=PairTokenizer.train(pairs, sides),
            weights={
                "a.weight": numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
                "b": numpy.zeros(0, dtype=numpy.float32),
            },
            metrics={"test": {"bleu": 1.0}},
            card="# A model\n",
            calibration=StoredCalibration(
                temperature=1.5,
                rows=9,
                pairs=("p.tsv",),
                decoding=DecodingSettings(),
                thresholds=(Threshold(precision=0.9, threshold=0.5, coverage=0.5, exact=0.9),),
            ),
            source_counts=(0, 1, 2),
        )
        models.append(folder / f"model{number}")
        write_bundle(models[-1], bundle)
        # A long file is slow to read, and its defaults teach the fuzzer nothing.
        (models[-1] / "config.yaml").write_text(
            "model:\n  d_model: 8\n  nhead: 2\ndata.source: 1\n"
        )
        evaluation = models[-1] / "evaluation" / "test"
        evaluation.mkdir(parents=True)
        rows = [
            Row(source="a", references=("A", "b"), hypothesis="A", score=-0.5, line=1, file="p")
        ]
        write_rows(evaluation / "rows.jsonl", rows)
        (evaluation / "scores.json").write_text('{"scores": {"bleu": {"value": 1.0}}, "rows": 1}\n')
    return models


def edit(content: bytes, edits: bytes) -> bytes:
    """Return `content` after `edits`: place (2 bytes), how many to take out, how many to put in."""
    changed = bytearray(content)
    while len(edits) >= 4:
        place = int.from_bytes(edits[:2], "big") * (len(changed) + 1) >> 16
        put = edits[4 : 4 + edits[3]]
        changed[place : place + edits[2]] = put
        edits = edits[4 + len(put) :]
    return bytes(changed)


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """See that text comes back, and that a saved tokenizer is the same."""
    try:
        batch = tokenizer.encode_batch(TEXTS)
    except DragomanError:  # a pattern that runs away
        return
    form = tokenizer.settings.unicode_form
    for text, ids in zip(TEXTS, batch, strict=True):
        assert tokenizer.encode(text) == ids, "batch and one by one differ"
        if UNKNOWN_ID not in ids:
            expected = from_unicode_form(to_unicode_form(text, form), form)
            assert tokenizer.decode(ids) == expected, f"{text!r} comes back otherwise"
    assert not batch[0], "an empty text has tokens"
    size = tokenizer.vocab_size
    assert len(set(tokenizer.tokens(range(size)))) == size
    assert len(tokenizer.token_bytes()) == size
    twin = Tokenizer.from_dict(tokenizer.to_dict())
    assert twin.encode_batch(TEXTS) == batch, "a copy encodes otherwise"


def check_pair_tokenizer(folder: Path) -> None:
    """Load the tokenizers of both sides, use them, and save them."""
    tokenizer = PairTokenizer.load(folder / "tokenizer.json")
    check_tokenizer(tokenizer.source)
    check_tokenizer(tokenizer.target)
    assert len(set(tokenizer.source_names())) == tokenizer.source_vocab_size
    assert len(tokenizer.target_names()) == tokenizer.target_vocab_size
    sources = tokenizer.encode_sources(["a"], [("<V>", "<W>")])
    assert max(sources[0]) < tokenizer.source_vocab_size
    tokenizer.decode_target(range(tokenizer.target_vocab_size))
    copy = folder / "copy.json"
    tokenizer.save(copy)
    assert PairTokenizer.load(copy).to_dict() == tokenizer.to_dict()


def check_settings(folder: Path) -> None:
    """Read settings, write them, and read them back."""
    settings = read_settings(folder / "config.yaml")
    find_conflicts(settings)
    list(list_set_values(settings))
    copy = folder / "copy.yaml"
    copy.write_text(dump_settings(settings), encoding="utf-8")
    assert read_settings(copy) == settings, "settings come back otherwise"


def check_words(folder: Path) -> None:
    """Read settings as typed."""
    content = (folder / "words").read_bytes()
    words = content.decode("utf-8", errors="surrogateescape").split("\0")
    settings = read_settings(None, words)
    copy = folder / "copy.yaml"
    copy.write_text(dump_settings(settings), encoding="utf-8")
    assert read_settings(copy) == settings, "settings come back otherwise"


def check_folder(folder: Path) -> None:
    """Read the whole folder; what is read can be written."""
    bundle = read_bundle(folder)
    copy = folder / "copy"
    try:
        write_bundle(copy, bundle)
        again = read_bundle(copy)
        assert again.weights.keys() == bundle.weights.keys()
        assert again.source_counts == bundle.source_counts
        assert again.calibration == bundle.calibration
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def check_rows(folder: Path) -> None:
    """Read the rows of an evaluation; what is read can be written."""
    evaluation = folder / "evaluation" / "test"
    rows, _ = read_evaluation(evaluation)
    write_rows(folder / "copy.jsonl", rows)
    assert len(read_rows(folder / "copy.jsonl")) == len(rows)


def check_outputs(folder: Path) -> None:
    """Read the rows as outputs in a file; what is read can be written."""
    path = folder / "evaluation" / "test" / "rows.jsonl"
    write_rows(folder / "copy.jsonl", read_outputs(path, [path], path))


CHECKS: dict[str, tuple[Callable[[Path], object], ...]] = {
    "config.yaml": (check_settings, read_bundle),
    "tokenizer.json": (check_pair_tokenizer, read_bundle),
    "metrics.json": (check_folder,),
    "model.safetensors": (check_folder,),
    "calibration.json": (read_calibration, check_folder),
    "token_counts.json": (check_folder,),
    "evaluation/test/rows.jsonl": (check_rows, check_outputs),
    "evaluation/test/scores.json": (check_rows,),
    "words": (check_words,),
}


def run_case(data: bytes, models: list[Path], findings: Findings) -> None:
    """Put what `data` says in the place of a file, read the folder, and put the good file back."""
    model, name = models[data[0] % len(models)], FILES[data[1] % len(FILES)]
    path = model / name
    good = path.read_bytes() if path.exists() else b""
    content = data[HEAD_BYTES:] if data[2] & 1 else edit(good, data[HEAD_BYTES:])
    path.write_bytes(content[:_LARGEST_FILE])
    try:
        for check in CHECKS[name]:
            try:
                check(model)
            except DragomanError as error:
                length = len(str(error))  # each fault has its line
                assert length < 2_000 + 200 * len(content), f"a message of {length} characters"
            except BaseException as error:  # a panic of Rust is no Exception
                findings.add(data, error)
                if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                    raise
    finally:
        path.write_bytes(good)


def main() -> None:
    """Run libFuzzer with the arguments of the command line."""
    findings = Findings(Path(os.environ.get("FINDINGS", "/tmp/findings-bundle")))
    models = write_models(Path(mkdtemp(prefix="fuzz-bundle-", dir="/dev/shm")))

    def try_input(data: bytes) -> None:
        if len(data) < HEAD_BYTES:
            return
        began = time.monotonic()
        try:
            run_case(data, models, findings)
        except Exception as error:
            findings.add(data, error)
        findings.watch(data, began)

    options = ["-max_len=4096", "-timeout=60", "-rss_limit_mb=3000", "-print_final_stats=1"]
    program = f"{sys.executable} {sys.argv[0]}"  # libFuzzer starts itself anew by it to merge
    atheris.Setup([program, *options, *sys.argv[1:]], try_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
