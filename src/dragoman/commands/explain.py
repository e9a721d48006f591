"""`dragoman explain`: the training pairs nearest to a source, and what they say of its output."""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz.fuzz import ratio

from dragoman.configuration import SettingsLike, as_settings, merge_settings
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import DataError, DragomanError, shorten
from dragoman.evaluation.output_rows import as_outputs
from dragoman.model_folder.folder import ModelFolder
from dragoman.predictor import Predictor
from dragoman.reading.in_memory import Pairs, as_files
from dragoman.reading.pairs import Pair, read_pairs, take_features
from dragoman.reading.row_errors import name_row
from dragoman.reading.statistics import is_in_part, split_of
from dragoman.settings import DataSettings
from dragoman.storage import sha256

_ENCODED_ROWS = 2000  # the nearest by characters, whose encoder states are compared
_UNSURE = 0.8  # probability of a token
_SHORTEST_PIECE = 3  # characters


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A training pair, and how near its source is."""

    row: str  # file:line
    source: str
    features: tuple[str, ...]
    target: str
    characters: float  # similarity of the sources in [0, 1]: 2 * common characters / all
    encoder_state: float  # cosine of the mean states of the encoder
    supports: tuple[str, ...]  # the longest pieces of the output that the target has, in order


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """An output of a model, and the training pairs that bear on it."""

    source: str  # without leading tags
    output: str
    confidence: float
    unsure: tuple[dict[str, Any], ...]  # tokens: place from 1, token, probability
    neighbours: tuple[Neighbour, ...]  # by characters, then those that are nearest by state
    otherwise: dict[str, list[str]]  # rows of this very source by their targets, not the output
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def explain(
    path: str | Path,
    source: str,
    features: Sequence[str] = (),
    *,
    pairs: Pairs = (),
    settings: SettingsLike = None,
    num_rows: int = 5,
    device: str = "auto",
) -> Explanation:
    """Return why the model in the folder `path` may have its output for `source`.

    All training pairs are read. The states of the encoder are compared for the 2,000 nearest by
    characters.

    Args:
        features: Values of `data.features`, in that order.
        pairs: Those of the training; (): in the files that the model folder names.
        settings: Data and decoding sections override those of the model.
        num_rows: Pairs to return by each kind of nearness.

    Raises:
        DataError: The pairs are missing or invalid.
        DragomanError: The source is empty, or does not fit the model.
    """
    typed = as_settings(settings, is_whole=False)
    detailed = merge_settings(typed, {"decoding.token_scores": True}, overrule=True)
    model = Predictor.load(path, detailed, engine="torch", device=device)
    assert isinstance(model.engine, TorchEngine)
    [best_first] = model.predict_n_best([source], [features] if model.feature_labels else None)
    if not best_first:
        raise DragomanError("SOURCE: it is empty")
    best, data = best_first[0], model.settings.data
    source, symbols = take_features(source, features, model.feature_labels, data)
    notes, otherwise = list[str](), dict[str, list[str]]()

    def compare(training: Iterator[Pair]) -> Iterator[tuple[float, int, Pair]]:
        for i, pair in enumerate(training):
            yield ratio(source, pair.source) / 100, -i, pair
            is_same = (pair.source, pair.features) == (source, symbols)
            if is_same and pair.target != best.emitted:
                otherwise.setdefault(pair.target, []).append(name_row(pair.file, pair.line))

    with as_files(pairs or find_files(ModelFolder.read(Path(path)).metrics, notes)) as files:
        form = model.settings.tokenizer.target.unicode_form
        training = as_outputs(read_training(files, data, model.feature_labels, notes), form)
        found = heapq.nlargest(_ENCODED_ROWS, compare(training))
    distinct = {(one.source, one.features, one.target): (near, one) for near, _, one in found[::-1]}
    nearest = list(distinct.values())[::-1]
    ids = model.tokenizer.encode_sources(
        [source, *(one.source for _, one in nearest)],
        [symbols, *(one.features for _, one in nearest)],
    )
    states = model.engine.pool_states(ids)
    cosines = states[1:] @ states[0]
    chosen = [*range(min(num_rows, len(nearest))), *np.argsort(-cosines, kind="stable")[:num_rows]]
    if model.memory and model.settings.decoding.memory == "auto":
        remembered = model.memory.find(source, symbols)
        notes += [f"predict answers from memory: {remembered.target}"] if remembered else []
    probabilities = [round(math.exp(one), 4) for one in best.log_probs]
    tokens = enumerate(zip(best.tokens, probabilities, strict=True), start=1)
    return Explanation(
        source=source,
        output=best.text,
        confidence=best.confidence,
        unsure=tuple(
            {"place": place, "token": token, "probability": probability}
            for place, (token, probability) in tokens
            if probability < _UNSURE
        ),
        neighbours=tuple(
            Neighbour(
                row=name_row(pair.file, pair.line),
                source=pair.source,
                features=pair.features,
                target=pair.target,
                characters=round(near, 4),
                encoder_state=round(float(cosines[i]), 4),
                supports=_find_pieces(best.text, pair.target),
            )
            for i in dict.fromkeys(map(int, chosen))
            for near, pair in [nearest[i]]
        ),
        otherwise=otherwise,
        notes=tuple(notes),
    )  # fmt: skip


def describe_explanation(found: Explanation) -> list[str]:
    """Return the explanation as lines for the terminal."""
    lines = [f"output: {found.output}  (confidence {found.confidence:.2f})"]
    lines += [
        f"unsure of token {one['place']}, {one['token']!r}: {one['probability']:.0%}"
        for one in sorted(found.unsure, key=lambda one: one["probability"])[:10]
    ]
    lines += [
        f"{len(rows):,} training {'row' if len(rows) == 1 else 'rows'} of this source "
        f"{'says' if len(rows) == 1 else 'say'} otherwise: {shorten(', '.join(rows))}: {target}"
        for target, rows in found.otherwise.items()
    ]
    lines.append("nearest training rows (similarity of characters, of encoder states):")
    for one in found.neighbours:
        source = " ".join((*one.features, one.source))
        pieces = ", ".join(map(repr, one.supports)) or "nothing"
        lines.append(
            f"  {one.characters:.2f} {one.encoder_state:.2f}  {one.row}: {source} -> {one.target}"
        )
        lines.append(f"             supports {pieces}")
    return [*lines, *(f"note: {note}" for note in found.notes)]


def find_files(metrics: dict[str, Any], notes: list[str]) -> list[Path]:
    """Return the files of the training pairs; note which have changed.

    Raises:
        DataError: One is not there.
    """
    data = metrics.get("data", {})
    names = data.get("files", ["pairs"])
    files = [Path(name) for name in names]  # a URL is not fetched: the folder may be a stranger's
    if missing := [name for name, one in zip(names, files, strict=True) if not one.is_file()]:
        raise DataError(f"{missing[0]}: the training pairs are not there; name them by --pairs")
    changed = [one for one in files if data.get("sha256", {}).get(str(one)) != sha256(one)]
    notes += [f"{one} has changed since the training" for one in changed]
    return files


def read_training(
    files: Sequence[str | Path], data: DataSettings, labels: Sequence[str], notes: list[str]
) -> Iterator[Pair]:
    """Yield the pairs that the model was trained on; note how many were held out.

    `labels` are the names of its features.
    """
    held_out = 0
    fractions = 0.0 if data.valid else data.valid_fraction, 0.0 if data.test else data.test_fraction
    for pair in read_pairs(files, data, labels=labels):
        split = split_of(pair.source, pair.features, *fractions)
        if split == "train" and is_in_part(pair.source, data.train_fraction):
            yield pair
        else:
            held_out += 1
    if held_out:
        notes.append(f"{held_out:,} rows were held out of the training, and are left out here")


def _find_pieces(output: str, target: str) -> tuple[str, ...]:
    """Return the longest common pieces, of 3 characters or the whole output, in order."""
    blocks = SequenceMatcher(None, output, target, autojunk=False).get_matching_blocks()
    shortest = max(1, min(_SHORTEST_PIECE, len(output)))
    return tuple(output[a : a + size] for a, _, size in blocks if size >= shortest)
