"""Ids of a pair as text again, for what people read while a model trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from dragoman.tokenizers.pair_tokenizer import PairTokenizer
from dragoman.tokenizers.special_ids import UNKNOWN_ID

_UNKNOWN: Final = "\ufffd"  # in the place of a token that the vocabulary does not hold


@dataclass(frozen=True)
class Texts:
    """The texts of ids without begin, end and padding.

    A symbol that was not seen in training stands as U+FFFD in a source or a reference, so that no
    output is taken for right that lacks it. Outputs read as the trained model would write them.
    """

    tokenizer: PairTokenizer

    def read_source(self, ids: Sequence[int]) -> str:
        """Return the features of a source, each with a space behind it, and its text."""
        first = self.tokenizer.source.vocab_size
        names = list(self.tokenizer.features)
        symbols = [f"{names[id_ - first]} " for id_ in ids if id_ >= first]
        text = [id_ for id_ in ids if id_ < first]
        return "".join(symbols) + self._mark_unknown(text, is_source=True)

    def read_reference(self, ids: Sequence[int]) -> str:
        """Return the text of a reference."""
        return self._mark_unknown(ids)

    def read_output(self, ids: Sequence[int]) -> str:
        """Return the text of an output."""
        return self.tokenizer.decode_target(ids)

    def _mark_unknown(self, ids: Sequence[int], *, is_source: bool = False) -> str:
        tokenizer = self.tokenizer
        side = tokenizer.source if is_source else tokenizer.target
        decode = side.decode if is_source else tokenizer.decode_target
        if UNKNOWN_ID not in ids:
            return decode(ids)
        parts: list[str] = []
        for is_unknown, run in groupby(ids, key=lambda id_: id_ == UNKNOWN_ID):
            part = list(run)
            parts += [_UNKNOWN] * len(part) if is_unknown else [decode(part)]
        return side.separator.join(parts)

    def __deepcopy__(self, memo: object) -> "Texts":
        return self  # nothing in it changes: copies of a module, as for averages, share it
