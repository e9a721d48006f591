"""Training batches changed at random, so that a model sees each pair in many forms."""

from collections.abc import Callable
from difflib import SequenceMatcher
from functools import partial

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from dragoman.data.dataset import Batch
from dragoman.errors import SettingsError
from dragoman.settings import OptimizationSettings
from dragoman.tokenizers.tokenizer import EOS_ID, FIRST_TEXT_ID, PAD_ID, PairTokenizer

Augmentation = Callable[[Batch, np.random.Generator], Batch]

_SHORTEST_STEM = 3  # letters
_REPLACED = 0.5  # of the letters of a stem


def make_augmentations(
    settings: OptimizationSettings, tokenizer: PairTokenizer
) -> list[Augmentation]:
    """Return what `settings` ask for.

    Raises: SettingsError, when the tokens do not suit it.
    """
    found = list[Augmentation]()
    if probability := settings.hallucination:
        if not tokenizer.is_shared or tokenizer.source.settings.kind != "characters":
            raise SettingsError(
                f"optimization.hallucination: {probability} replaces letters that source and target "
                "share, which needs one vocabulary of characters; set it to 0, or tokenizer.shared "
                "and tokenizer.source.kind and tokenizer.target.kind characters"
            )
        names = tokenizer.source.tokens(range(tokenizer.source.vocab_size))
        letters = [i for i in range(FIRST_TEXT_ID, len(names)) if names[i].isalpha()]
        found.append(partial(hallucinate_stems, letters=np.array(letters), probability=probability))
    if probability := settings.subword_dropout:
        source = np.zeros((tokenizer.source_vocab_size, 2), np.int64)
        target = np.zeros((tokenizer.target_vocab_size, 2), np.int64)
        for parts, side in ((source, tokenizer.source), (target, tokenizer.target)):
            for id_, both in side.find_parts().items():
                parts[id_] = both
        if not (source.any() or target.any()):
            raise SettingsError(
                f"optimization.subword_dropout: {probability} splits the subwords of kind bpe, and no "
                "side has them; set it to 0, or tokenizer.source.kind to bpe"
            )
        found.append(
            partial(
                split_subwords, source_parts=source, target_parts=target, probability=probability
            )
        )
    return found


def split_subwords(
    batch: Batch,
    random: np.random.Generator,
    *,
    source_parts: NDArray[np.int64],
    target_parts: NDArray[np.int64],
    probability: float,
) -> Batch:
    """Return `batch` with longer rows: subwords are split at random; its arguments alone decide them.

    Source: BPE-dropout (Provilkov et al. 2020) leaves out merges while a text is encoded; here
    merges are undone, from the last, which needs no text.

    Args:
        source_parts: The ids of the two parts of each source id, (V, 2); 0: it has none.
        target_parts: The same of the targets.
        probability: That of each subword to be split; its parts may be split again.
    """
    return Batch(
        source_ids=_split(batch.source_ids, source_parts, probability, random),
        target_ids=_split(batch.target_ids, target_parts, probability, random),
        rows=batch.rows,
    )


def _split(
    ids: Int[Tensor, "B L"],
    parts: NDArray[np.int64],
    probability: float,
    random: np.random.Generator,
) -> Int[Tensor, "B M"]:
    rows, places = np.nonzero(ids.numpy() != PAD_ID)
    tokens = ids.numpy()[rows, places]
    is_split = np.ones(len(tokens), dtype=bool)  # may be
    while is_split.any():
        is_split &= (parts[tokens, 0] > 0) & (random.random(len(tokens)) < probability)
        counts = 1 + is_split
        first, second = parts[tokens[is_split]].T
        ends = counts.cumsum()[is_split]
        rows, tokens = rows.repeat(counts), tokens.repeat(counts)
        tokens[ends - 2], tokens[ends - 1] = first, second
        is_split = is_split.repeat(counts)
    lengths = np.bincount(rows, minlength=len(ids))
    is_token = np.arange(lengths.max(initial=0)) < lengths[:, None]  # (B, M)
    found = np.full(is_token.shape, PAD_ID, dtype=np.int64)
    found[is_token] = tokens
    return torch.from_numpy(found)


def hallucinate_stems(
    batch: Batch, random: np.random.Generator, *, letters: NDArray[np.int64], probability: float
) -> Batch:
    """Replace letters of the longest string that source and target share by other letters.

    So a model of inflection learns endings from few words, and to copy what it has never seen. Its
    arguments alone decide the changes.
    Source: Anastasopoulos and Neubig 2019, who add such rows to the training pairs.

    Args:
        letters: The ids that may be replaced.
        probability: That of a pair to be changed.
    """
    sources, targets = batch.source_ids.numpy().copy(), batch.target_ids.numpy().copy()
    usual = targets[np.isin(targets, letters)]  # each as often as it is used
    for row in np.nonzero(random.random(len(sources)) < probability)[0]:
        source, target = (  # views, without the end and the padding
            ids[row, : np.isin(ids[row], (PAD_ID, EOS_ID), invert=True).sum()]
            for ids in (sources, targets)
        )
        matcher = SequenceMatcher(None, source.tolist(), target.tolist(), autojunk=False)
        found = matcher.find_longest_match()
        stem = source[found.a : found.a + found.size]
        is_letter = np.isin(stem, letters)
        if is_letter.sum() < _SHORTEST_STEM:
            continue
        is_letter[np.nonzero(is_letter)[0][-1]] = False  # endings depend on the last letter
        replaced = is_letter & (random.random(len(stem)) < _REPLACED)
        stem = np.where(replaced, random.choice(usual, len(stem)), stem)
        source[found.a : found.a + found.size] = stem
        target[found.b : found.b + found.size] = stem
    return Batch(
        source_ids=torch.from_numpy(sources),
        target_ids=torch.from_numpy(targets),
        rows=batch.rows,
    )
