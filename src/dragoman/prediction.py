"""One output of a trained model, as text."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One output for a source."""

    text: str
    score: float  # log-probability of the output, in nats
    confidence: float  # probability, in [0, 1], that it is exactly right: see `find_confidence`
    normalized_score: float  # the score by which hypotheses are compared: decoding.length_norm
    is_complete: bool  # False: cut at its longest length (see decoding.max_length_ratio)
    num_unknown: int  # tokens of the source that the model has never seen
    tokens: tuple[str, ...]  # of the output, and its end where it is complete
    log_probs: tuple[float, ...]  # of each of `tokens`, with decoding.token_scores
    source_tokens: tuple[str, ...]
    alignment: tuple[tuple[float, ...], ...]  # (tokens, source_tokens), with decoding.alignment

    def marked(self, cut_mark: str) -> str:
        """Return the text, with `cut_mark` behind it if it was cut."""
        return self.text if self.is_complete else self.text + cut_mark
