"""The usual Lightning script, with our classes: a model that reverses sequences of ids.

python examples/lightning/train.py [EPOCHS]     (default: 16, under a minute on one core)
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import dragoman

PAD, BEGIN, END = 0, 1, 2  # padding stands on the right


class Reversed(Dataset[tuple[Tensor, Tensor]]):
    """Random sources, and as the target begin, the source reversed, end."""

    def __init__(self, rows: int, *, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.sources = torch.randint(3, 20, (rows, 6), generator=generator)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        source = self.sources[row]
        return source, torch.cat((torch.tensor([BEGIN]), source.flip(0), torch.tensor([END])))


def main(epochs: int) -> None:
    """Train, validate by decoding, and generate."""
    lightning.seed_everything(1, verbose=False)
    train = DataLoader(Reversed(1500, seed=1), batch_size=32, shuffle=True)
    valid = DataLoader(Reversed(200, seed=2), batch_size=100)
    net = dragoman.LightningTransformer(
        vocab_size=20, d_model=64, nhead=4, num_layers=2, dim_feedforward=128, max_seq_len=20
    )
    best = ModelCheckpoint(monitor="valid_exact_match", mode="max")
    patience = EarlyStopping(monitor="valid_exact_match", mode="max", patience=5)
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=[best, patience], logger=False)
    trainer.fit(net, train, valid)

    unseen = Reversed(5, seed=3).sources
    for source, output in zip(unseen.tolist(), net.generate(unseen), strict=True):
        print(source, "->", output)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16)
