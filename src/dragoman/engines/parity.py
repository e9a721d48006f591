"""Parity: whether an engine gives the outputs of PyTorch, on held-out rows."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from dragoman.decoding.hypothesis import Hypothesis, limit_lengths, normalize
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.engine import Engine, Ids, Quantization, add_details
from dragoman.errors import ModelFolderError
from dragoman.model_folder.folder import ModelFolder
from dragoman.reading.pairs import take_features
from dragoman.tokenizers.tokenizer import EOS_ID, UNKNOWN_ID

_TIE = 1e-3  # nats: tokens whose log-probabilities differ by less are equally good


@dataclass(frozen=True, kw_only=True)
class Check:
    """How the greedy outputs and the scores of two engines compare."""

    rows: int
    equal_rows: int  # rows with the same tokens, complete or truncated alike
    tied_rows: int
    """Others, where PyTorch finds both tokens equally likely at the first difference: rounding."""
    largest_difference: float  # of the log-probability of a reference, in nats

    @property
    def is_equal(self) -> bool:
        """Whether all outputs are the same, but for ties, and all scores are finite."""
        are_same = self.equal_rows + self.tied_rows == self.rows
        return are_same and math.isfinite(self.largest_difference)

    def to_dict(self) -> dict[str, float | None]:
        """Return it as JSON values; a difference that is not finite is None."""
        is_finite = math.isfinite(self.largest_difference)
        difference = self.largest_difference if is_finite else None
        return {**asdict(self), "largest_difference": difference, "is_equal": self.is_equal}

    def __str__(self) -> str:
        ties = f", {self.tied_rows} differ at a tie" if self.tied_rows else ""
        return (
            f"{self.equal_rows} of {self.rows} held-out outputs are PyTorch's{ties}; the score of "
            f"a reference differs by at most {self.largest_difference:.2g}"
        )


class ExportedModel:
    """An exported model as an engine, to check it: greedy search and scores, row by row.

    `num_positions`: learned positions of the targets; None: sinusoidal or rotary ones.
    """

    name: str
    quantization: Quantization = "float32"

    def __init__(self, num_positions: int | None = None) -> None:
        self._num_positions = num_positions

    def decode(self, source: Sequence[int], longest: int) -> list[int]:
        """Return the greedy output of a source, of at most `longest` tokens, with its end."""
        raise NotImplementedError

    def score_tokens(self, source: Sequence[int], emitted: Sequence[int]) -> list[float]:
        """Return the log-probability of each token of an output, its end included."""
        raise NotImplementedError

    def search(
        self, sources: Ids, config: SearchConfig, prefixes: Ids | None = None
    ) -> list[list[Hypothesis]]:
        """Return the greedy hypothesis of each source; of the settings, only the lengths count."""
        assert prefixes is None
        limits = limit_lengths([len(ids) for ids in sources], config.decoding, self._num_positions)
        return [
            [self._describe(source, self.decode(source, limit.longest), config)]
            for source, limit in zip(sources, limits, strict=True)
        ]

    def score(self, sources: Ids, targets: Ids, config: SearchConfig) -> list[Hypothesis]:
        """Return each target with its log-probabilities: see `Engine.score`."""
        return [
            self._describe(source, [*target, EOS_ID], config)
            for source, target in zip(sources, targets, strict=True)
        ]

    def _describe(
        self, source: Sequence[int], emitted: Sequence[int], config: SearchConfig
    ) -> Hypothesis:
        log_probs, is_complete = self.score_tokens(source, emitted), emitted[-1] == EOS_ID
        return Hypothesis(
            ids=tuple(emitted[:-1] if is_complete else emitted),
            score=sum(log_probs),
            normalized_score=normalize(sum(log_probs), len(log_probs), config.decoding),
            is_complete=is_complete,
            log_probs=tuple(log_probs),
        )


class Sample(NamedTuple):
    """A held-out row."""

    source: str
    features: list[str]  # one for each of `data.features`
    target: str


def list_samples(model_folder: ModelFolder) -> list[Sample]:
    """Return the held-out rows in `model_folder.metrics`.

    Raises: ModelFolderError, when there are no such rows.
    """
    samples = model_folder.metrics.get("samples")
    if not samples:
        raise ModelFolderError(
            "metrics.json has no samples, the held-out rows to check an export on; train the model "
            "again with this version of dragoman"
        )
    num_features = len(model_folder.settings.data.features)
    try:
        found = [Sample(one["source"], one["features"], one["reference"]) for one in samples]
        are_texts = all(
            type(text) is str for one in found for text in (one.source, *one.features, one.target)
        )
    except (KeyError, TypeError):
        are_texts = False
    if not are_texts or any(len(one.features) != num_features for one in found):
        raise ModelFolderError(
            "metrics.json: samples: expected rows of a source, features and a reference; copy the "
            "model folder again"
        )
    return found


def compare(reference: Engine, engine: Engine, model_folder: ModelFolder) -> Check:
    """Return how `engine` compares with `reference` on the held-out rows in `model_folder.metrics`.

    The outputs are greedy ones, within the lengths of the model's own settings.

    Raises: ModelFolderError, when there are no such rows.
    """
    config = SearchConfig(decoding=model_folder.settings.decoding.to_greedy())
    samples, data = list_samples(model_folder), model_folder.settings.data
    taken = [take_features(one.source, one.features, data.features, data) for one in samples]
    texts = [text for text, _ in taken]
    sources = model_folder.tokenizer.encode_sources(texts, [symbols for _, symbols in taken])
    encoded = model_folder.tokenizer.encode_targets([one.target for one in samples], texts)
    # No engine emits an unknown token, so its probability is 0.
    targets = [[id_ for id_ in ids[1:-1] if id_ != UNKNOWN_ID] for ids in encoded]
    one, other = (
        np.array([each.score for each in e.score(sources, targets, config)], float)
        for e in (reference, engine)
    )
    model, num_equal, num_tied = model_folder.settings.model, 0, 0
    num_positions = model.max_positions if model.positions == "learned" else None
    results = (e.search(sources, config) for e in (reference, engine))
    for source, [wanted], [found] in zip(sources, *results, strict=True):
        if wanted.ids == found.ids:  # where only one is truncated, rounding is not the reason
            num_equal += wanted.is_complete == found.is_complete
            continue
        pairs = enumerate(zip(wanted.ids, found.ids, strict=False))
        shorter = min(len(wanted.ids), len(found.ids))
        common = next((i for i, (one_id, other_id) in pairs if one_id != other_id), shorter)
        [scored] = add_details(reference, [source], [[wanted, found]], config, num_positions)
        first, second = (each.log_probs[common] for each in scored)
        num_tied += abs(first - second) < _TIE
    return Check(
        rows=len(sources),
        equal_rows=num_equal,
        tied_rows=num_tied,
        # numpy's maximum is NaN where one is, Python's may be another.
        largest_difference=float(np.max(np.abs(one - other), initial=0.0)),
    )
