"""Whether an exported model says what PyTorch says, on held-out rows."""

from dataclasses import asdict, dataclass

from dragoman.decoding.plan import SearchPlan
from dragoman.engines.engine import Engine
from dragoman.settings import DecodingSettings
from dragoman.text.bundle import Bundle
from dragoman.text.pairs import take_features


@dataclass(frozen=True, kw_only=True)
class Check:
    """How the greedy outputs and the scores of two engines compare."""

    rows: int
    equal_rows: int  # with the same tokens, and ended or cut alike
    largest_difference: float  # of the log-probability of a reference, in nats

    @property
    def is_equal(self) -> bool:
        """Whether all outputs are the same."""
        return self.equal_rows == self.rows

    def to_dict(self) -> dict[str, float]:
        """Return it as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.equal_rows} of {self.rows} held-out outputs are PyTorch's; the score of a "
            f"reference differs by at most {self.largest_difference:.2g}"
        )


def greedy(decoding: DecodingSettings) -> DecodingSettings:
    """Return the settings of a greedy search with the lengths of `decoding`."""
    return DecodingSettings(
        max_length_ratio=decoding.max_length_ratio, max_length_extra=decoding.max_length_extra
    )


def compare(reference: Engine, engine: Engine, bundle: Bundle, plan: SearchPlan) -> Check:
    """Return how `engine` compares with `reference` on the held-out rows in `bundle.metrics`."""
    samples, data = bundle.metrics["samples"], bundle.settings.data
    features, texts = [], []
    for sample in samples:
        text, symbols = take_features(sample["source"], sample["features"], data.features, data)
        texts.append(text)
        features.append(symbols)
    sources = bundle.tokenizer.encode_sources(texts, features)
    targets = [
        ids[1:-1] for ids in bundle.tokenizer.encode_targets([s["reference"] for s in samples])
    ]
    outputs = [engine.search(sources, plan) for engine in (reference, engine)]
    scores = [engine.score(sources, targets, plan) for engine in (reference, engine)]
    return Check(
        rows=len(sources),
        equal_rows=sum(
            (one.ids, one.is_complete) == (other.ids, other.is_complete)
            for [one], [other] in zip(*outputs, strict=True)
        ),
        largest_difference=max(
            (abs(one.score - other.score) for one, other in zip(*scores, strict=True)), default=0.0
        ),
    )
