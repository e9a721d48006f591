"""Says by a hash of the source whether a pair is for training, validation or test."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal


def split_of(
    source: str, features: Sequence[str], valid_fraction: float, test_fraction: float
) -> Literal["train", "valid", "test"]:
    """Return the split of a source, the same on every machine and in every order of the rows.

    `features` play no part, so that one source with several features never stands in two splits.
    Changing one fraction moves nothing between train and the other split, as long as the fractions
    sum to less than 1.
    """
    if valid_fraction == test_fraction == 0.0:
        return "train"
    digest = blake2b(source.encode(errors="surrogatepass"), digest_size=8).digest()
    place = (int.from_bytes(digest, "big") >> 11) / 2**53
    if place < valid_fraction:
        return "valid"
    return "test" if place >= 1.0 - test_fraction else "train"
