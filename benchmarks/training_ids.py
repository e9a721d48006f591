"""The ids of the training split, made once by dragoman's tokenizer, and read by all the others."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from training_task import Lengths, Task

Rows = list[NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Pairs as ids: a source with its end; a target with begin and end."""

    sources: Rows
    targets: Rows
    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int

    @property
    def lengths(self) -> Lengths:
        """How much there is of them."""
        return sum_lengths([len(row) for row in self.sources], [len(row) for row in self.targets])

    def count_rows(self, tokens: int) -> int:
        """Return how many rows have so many labels on average."""
        lengths = self.lengths
        return max(1, round(tokens * lengths.num_pairs / lengths.target))


def write_ids(task: Task) -> tuple[int, Lengths]:
    """Make the ids as dragoman does, and write them; return the vocabulary's size and the lengths.

    For a process of its own: it imports torch and lightning, and has a cache of its own.
    """
    os.environ["XDG_CACHE_HOME"] = str(task.folder / "cache")
    from dragoman.settings import Settings
    from dragoman.tokenizers.tokenizer import BOS_ID, EOS_ID, PAD_ID
    from dragoman.training.datamodule import PairDataModule

    settings = Settings.model_validate(task.make_settings("cpu", "auto", "fused"))
    data = PairDataModule(task.data, settings)
    data.prepare_data()
    pairs = list(data.read_split("train"))
    tokenizer = data.tokenizer
    sources = tokenizer.encode_sources([p.source for p in pairs], [p.features for p in pairs])
    targets = tokenizer.encode_targets([p.target for p in pairs])
    np.savez(
        task.ids,
        sources=np.concatenate(sources),
        targets=np.concatenate(targets),
        source_lengths=np.array([len(row) for row in sources]),
        target_lengths=np.array([len(row) for row in targets]),
        vocab_size=np.array(tokenizer.source_vocab_size),
        pad_id=np.array(PAD_ID),
        bos_id=np.array(BOS_ID),
        eos_id=np.array(EOS_ID),
    )
    ids = read_ids(task.ids)
    return ids.vocab_size, ids.lengths


def read_ids(path: Path) -> Ids:
    """Return what `write_ids` wrote."""
    with np.load(path, allow_pickle=False) as found:
        return Ids(
            sources=_split(found["sources"], found["source_lengths"]),
            targets=_split(found["targets"], found["target_lengths"]),
            vocab_size=int(found["vocab_size"]),
            pad_id=int(found["pad_id"]),
            bos_id=int(found["bos_id"]),
            eos_id=int(found["eos_id"]),
        )


def sum_lengths(
    source_lengths: Sequence[int] | NDArray[np.int32],
    target_lengths: Sequence[int] | NDArray[np.int32],
) -> Lengths:
    """Return the sums over pairs of these lengths; those of targets have begin and end."""
    source = np.asarray(source_lengths, np.int64)
    target = np.asarray(target_lengths, np.int64) - 1
    return Lengths(
        num_pairs=len(source),
        source=int(source.sum()),
        target=int(target.sum()),
        source_squares=int((source * source).sum()),
        target_triangles=int((target * (target + 1) // 2).sum()),
        products=int((source * target).sum()),
    )


def _split(values: NDArray[np.int64], lengths: NDArray[np.int64]) -> Rows:
    return np.split(values.astype(np.int64), np.cumsum(lengths)[:-1])
