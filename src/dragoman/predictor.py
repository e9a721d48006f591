"""Text in, text out: a trained model at work, and its scores."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from dragoman.data.batch import pad
from dragoman.decoding.greedy import search_greedily
from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.length import longest_outputs
from dragoman.errors import DragomanError
from dragoman.evaluation.scores import Scores, group_references, score
from dragoman.model.building import build_network, load_weights
from dragoman.model.transformer import Transformer
from dragoman.settings import DecodingSettings, Settings
from dragoman.text.bundle import read_bundle
from dragoman.text.pair_tokenizer import PairTokenizer
from dragoman.text.pairs import BadRow, Pair, Source, take_features

_FIRST_WINDOW_ROWS = 64
_WINDOW_ROWS = 8192  # rows that are sorted by length together: bounds the memory of a long input

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The output for one source."""

    text: str
    score: float  # log-probability of the output, in nats
    is_complete: bool  # False: cut at its longest length (see decoding.max_length_ratio)
    num_unknown: int  # tokens of the source that the model has never seen

    def marked(self, cut_mark: str) -> str:
        """Return the text, with `cut_mark` behind it if it was cut."""
        return self.text if self.is_complete else self.text + cut_mark


class Predictor:
    """A trained model, on one device.

    Args:
        settings: The settings it was trained with; `settings.decoding` is how it predicts.
        device: "auto": a GPU if there is one.
    """

    def __init__(
        self,
        network: Transformer,
        tokenizer: PairTokenizer,
        settings: Settings,
        device: str = "auto",
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.tokenizer = tokenizer
        self.settings = settings

    @classmethod
    def load(cls, path: str | Path) -> "Predictor":
        """Return the model in the folder `path`.

        Raises:
            ModelFolderError: The folder is missing, incomplete or foreign; says which file.
        """
        bundle = read_bundle(Path(path))
        network = build_network(bundle.settings.model, bundle.tokenizer)
        load_weights(network, bundle.weights)
        return cls(network, bundle.tokenizer, bundle.settings)

    def predict(
        self, sources: Sequence[str], features: Sequence[Sequence[str]] | None = None
    ) -> list[str]:
        """Return the output for each source; one cut at its longest length ends with the cut mark.

        With `data.leading_tags`, a source begins with its tags: "<de> 3. Oktober 2024".

        Args:
            features: For a model with `data.features`: their values for each source, in that order.

        Raises:
            DragomanError: `sources` is one string, or `features` do not fit the model.
        """
        data = self.settings.data
        values = self._check_features(sources, features)
        rows = []
        for line, (text, row) in enumerate(zip(sources, values, strict=True), start=1):
            rest, symbols = take_features(text, row, data.features, data)
            rows.append(Source(source=rest, features=symbols, line=line))
        mark = self.settings.decoding.cut_mark
        return [prediction.marked(mark) for prediction in self._predict_window(rows)]

    def predict_rows(
        self, rows: Iterable[Source | BadRow]
    ) -> Iterator[tuple[Source | BadRow, Prediction | None]]:
        """Yield each row with its prediction, in order; None for a bad row.

        Holds some thousand rows at a time, whatever the length of the input.
        """
        for window in _windows(rows):
            good = [row for row in window if isinstance(row, Source)]
            predictions = iter(self._predict_window(good))
            for row in window:
                yield row, next(predictions) if isinstance(row, Source) else None

    def evaluate(self, pairs: Iterable[Pair]) -> Scores:
        """Return the scores of the model on `pairs`; rows of one source are its references.

        An output that was cut counts as it stands, without the cut mark.

        Raises:
            DataError: There are no pairs.
        """
        groups = group_references(pairs)
        rows = [Source(source=group.source, features=group.features, line=0) for group in groups]
        texts = [
            prediction.text for _, prediction in self.predict_rows(rows) if prediction is not None
        ]
        return score(
            texts,
            [group.references for group in groups],
            separator=self.settings.tokenizer.target.separator,
        )

    def _check_features(
        self, sources: Sequence[str], features: Sequence[Sequence[str]] | None
    ) -> Sequence[Sequence[str]]:
        if isinstance(sources, str):
            raise DragomanError("predict takes a list of sources: put the one in [ ]")
        columns = self.settings.data.features
        values = [()] * len(sources) if features is None else features
        if len(values) != len(sources) or any(len(row) != len(columns) for row in values):
            raise DragomanError(
                f"features: give {len(columns)} values for each of the {len(sources)} sources "
                f"(data.features of this model: {', '.join(columns) or 'none'})"
            )
        return values

    def _predict_window(self, rows: Sequence[Source]) -> list[Prediction]:
        """Return the prediction of each row; batches are of like lengths, the order is kept."""
        ids = self.tokenizer.encode_sources(
            [row.source for row in rows], [row.features for row in rows]
        )
        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        found: dict[int, Hypothesis] = {}
        for batch in _batches(by_length, lambda i: len(ids[i]), self.settings.decoding):
            found.update(zip(batch, self._search([ids[i] for i in batch]), strict=True))
        texts = self.tokenizer.decode_targets([found[i].ids for i in range(len(ids))])
        return [
            Prediction(
                text=texts[i],
                score=found[i].score,
                is_complete=found[i].is_complete,
                num_unknown=self.tokenizer.count_unknown(ids[i]),
            )
            for i in range(len(ids))
        ]

    def _search(self, sources: Sequence[Sequence[int]]) -> list[Hypothesis]:
        source_ids = pad(sources, self.network.pad_id).to(self.device)
        limits = longest_outputs(source_ids, self.network.pad_id, self.settings.decoding)
        return search_greedily(self.network, source_ids, limits)


def _batches(
    rows: Sequence[int], length_of: Callable[[int], int], decoding: DecodingSettings
) -> Iterator[list[int]]:
    """Yield `rows`, whose lengths rise, in batches of at most `decoding.batch_tokens` tokens."""
    batch: list[int] = []
    for row in rows:
        if batch and (len(batch) + 1) * length_of(row) > decoding.batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _windows(rows: Iterable[T]) -> Iterator[list[T]]:
    """Yield `rows` in growing windows: the first answers come soon, later ones are cheaper."""
    iterator, size = iter(rows), _FIRST_WINDOW_ROWS
    while window := list(islice(iterator, size)):
        yield window
        size = min(2 * size, _WINDOW_ROWS)
