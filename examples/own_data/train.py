"""Your own tokenizer and DataLoader, with our model: words -> words backwards.

python examples/own_data/train.py [STEPS]     (default: 600, under a minute on one core)
"""

import random
import sys
from collections.abc import Sequence

import lightning
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import dragoman

PAD, BEGIN, END, FIRST = 0, 1, 2, 3  # ids; those of letters begin with FIRST


class Letters:
    """Text <-> ids: any tokenizer will do that has such ids for padding, begin and end."""

    def __init__(self, letters: str) -> None:
        self.letters = letters

    def encode(self, text: str) -> list[int]:
        """Return the ids of the letters, and the end."""
        return [*(FIRST + self.letters.index(letter) for letter in text), END]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, which have no begin or end."""
        return "".join(self.letters[one - FIRST] for one in ids)


def main(steps: int) -> None:
    """Train on batches of our own making, and write some words."""
    chance, tokenizer = random.Random(1), Letters("abcdefghij")
    words = [
        "".join(chance.choices(tokenizer.letters, k=chance.randint(2, 6))) for _ in range(2000)
    ]

    def collate(batch: list[str]) -> tuple[Tensor, Tensor]:
        sources = [torch.tensor(tokenizer.encode(word)) for word in batch]
        targets = [torch.tensor([BEGIN, *tokenizer.encode(word[::-1])]) for word in batch]
        return pad_sequence(sources, batch_first=True), pad_sequence(targets, batch_first=True)

    batches = DataLoader(words, batch_size=32, shuffle=True, collate_fn=collate)
    net = dragoman.LightningTransformer(FIRST + 10, 64, 4, 2, 128, max_seq_len=20)
    lightning.Trainer(max_steps=steps, max_epochs=-1, logger=False).fit(net, batches)

    unseen = ["abc", "jihg", "fade"]
    source_ids, _ = collate(unseen)
    for word, ids in zip(unseen, net.generate(source_ids), strict=True):
        print(word, "->", tokenizer.decode(ids))


if __name__ == "__main__":
    lightning.seed_everything(1, verbose=False)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 600)
