"""The script of the usual answer to "How can Lightning be used with nn.Transformer?", on our classes."""

import lightning as pl
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from conftest import BOS, EOS
from dragoman import LightningTransformer


class SyntheticDataset(Dataset):
    """(src, tgt) id tensors; the target is the source reversed, between begin and end."""

    def __init__(self, num_samples: int, seq_len: int, vocab_size: int) -> None:
        self.src = torch.randint(3, vocab_size, (num_samples, seq_len))
        ends = torch.full((num_samples, 1), BOS), torch.full((num_samples, 1), EOS)
        self.tgt = torch.cat((ends[0], self.src.flip(1), ends[1]), dim=1)

    def __len__(self) -> int:
        return len(self.src)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.src[index], self.tgt[index]


def make_trainer(folder, **arguments):
    return pl.Trainer(
        accelerator="auto", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **arguments,
    )  # fmt: skip


def test_the_usual_script_learns_to_reverse(tmp_path):
    pl.seed_everything(0, verbose=False)
    vocab_size, seq_len = 20, 6
    dataloader = DataLoader(
        SyntheticDataset(1500, seq_len, vocab_size), batch_size=32, shuffle=True
    )
    model = LightningTransformer(
        vocab_size=vocab_size,
        d_model=64,
        nhead=4,
        num_layers=2,
        dim_feedforward=128,
        max_seq_len=20,
    )
    trainer = make_trainer(tmp_path, max_epochs=16)
    trainer.fit(model, dataloader)

    unseen = SyntheticDataset(300, seq_len, vocab_size)
    decoded = model.generate(unseen.src)
    right = sum(ids == src.flip(0).tolist() for ids, src in zip(decoded, unseen.src, strict=True))
    assert right / len(unseen) > 0.98
    assert trainer.callback_metrics["train_token_accuracy"] > 90
    [scores] = trainer.test(model, DataLoader(unseen, batch_size=100), verbose=False)
    assert scores["test_exact_match"] == pytest.approx(100 * right / len(unseen))
    [found] = trainer.predict(model, DataLoader(unseen.src, batch_size=300))
    assert [list(hypothesis.ids) for hypothesis in found] == decoded


def test_targets_without_begin_are_warned_about(tmp_path):
    src = torch.randint(3, 20, (8, 5))
    loader = DataLoader(torch.utils.data.TensorDataset(src, src), batch_size=8)
    model = LightningTransformer(vocab_size=20, d_model=16, nhead=2, num_layers=1)
    with pytest.warns(UserWarning, match="begins with bos_id 1"):
        make_trainer(tmp_path, max_steps=1).fit(model, loader)
