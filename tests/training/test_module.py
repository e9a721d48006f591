import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import lightning as pl
import pytest
import torch

from conftest import BOS, EOS, random_ids
from dragoman.data.dataset import Batch, pad
from dragoman.errors import SettingsError
from dragoman.model.transformer import Transformer
from dragoman.settings import OptimizationSettings
from dragoman.training.module import TransformerTraining


class Batches:
    """Batches that are at hand, as a loader."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def make_rows(count=32):
    """Pairs of many lengths, so that a mean of batch means is not the mean over tokens."""
    sources = [random_ids(1, 3 + i % 5, 20, seed=i)[0].tolist() for i in range(count)]
    targets = [
        [BOS, *random_ids(1, 1 + (i * i) % 11, 20, seed=100 + i)[0].tolist(), EOS]
        for i in range(count)
    ]
    return list(zip(sources, targets, strict=True))


def make_batches(size):
    rows = make_rows()
    return [
        Batch(
            source_ids=pad([s for s, _ in rows[i : i + size]]),
            target_ids=pad([t for _, t in rows[i : i + size]]),
        )
        for i in range(0, len(rows), size)
    ]


def make_module(teachers=(), **changes):
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 1, 32, dropout=0.0)
    # SGD-like: with Adam's first step every size of gradient looks alike.
    settings = OptimizationSettings(schedule="constant", warmup_steps=0, clip_norm=0.0)
    return TransformerTraining(network, settings.model_copy(update=changes), teachers=teachers)


class SgdTraining(TransformerTraining):
    """Plain gradient descent: the weights tell the size of the gradient, as Adam's do not."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def train(batches, folder, *, accumulate=1, steps=1, clip=None):
    torch.manual_seed(0)
    module = SgdTraining(
        Transformer(20, 16, 2, 1, 32, dropout=0.0),
        OptimizationSettings(schedule="constant", warmup_steps=0),
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, accumulate_grad_batches=accumulate, logger=False,
        gradient_clip_val=clip, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, Batches(batches))
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize(("size", "accumulate"), [(8, 4), (4, 8), (16, 2)])
def test_accumulated_batches_make_the_step_of_one_batch(tmp_path, size, accumulate, clip):
    whole = train(make_batches(32), tmp_path, clip=clip)
    parts = train(make_batches(size), tmp_path, accumulate=accumulate, clip=clip)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_a_step_uses_the_mean_over_tokens(tmp_path):
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 1, 32, dropout=0.0)
    [batch] = make_batches(32)
    logits = network(batch.source_ids, batch.target_ids[:, :-1])
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.target_ids[:, 1:].flatten(), ignore_index=0, label_smoothing=0.0
    ).backward()
    torch.manual_seed(0)
    module = SgdTraining(
        Transformer(20, 16, 2, 1, 32, dropout=0.0),
        OptimizationSettings(schedule="constant", warmup_steps=0, label_smoothing=0.0),
    )
    pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    ).fit(module, Batches([batch]))  # fmt: skip
    for updated, parameter in zip(module.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(updated, parameter - 0.5 * parameter.grad, rtol=1e-4, atol=1e-6)


def test_teachers_are_no_part_of_the_model_that_learns(tmp_path):
    teacher = Transformer(20, 24, 2, 1, 32)
    before, alone = deepcopy(teacher.state_dict()), make_module()
    module = make_module([teacher], distillation=0.5)
    assert module.state_dict().keys() == alone.state_dict().keys()
    assert len([*module.parameters()]) == len([*alone.parameters()])
    assert deepcopy(module).distillation.teachers[0] is teacher
    for one in (module, alone):
        pl.Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        ).fit(one, Batches(make_batches(32)))  # fmt: skip
    assert not torch.equal(
        module.network.source_embedding.weight, alone.network.source_embedding.weight
    )
    assert not teacher.training
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("teachers", "weight", "found"),
    [([], 0.5, "0.5 with 0"), ([20], 0.0, "0 with 1"), ([20, 23], 0.5, r"\[23, 23, 0, 1, 2\]")],
)
def test_teachers_without_a_weight_or_with_other_ids_are_refused(teachers, weight, found):
    with pytest.raises(SettingsError, match=f"optimization.distillation: .*{found}"):
        make_module([Transformer(size, 16, 2, 1, 32) for size in teachers], distillation=weight)


TWO_RANKS = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import lightning as pl, torch
from test_module import SgdTraining, make_batches
from dragoman.model.transformer import Transformer
from dragoman.settings import OptimizationSettings

class Half:
    def __len__(self):
        return 1

    def __iter__(self):
        rank = torch.distributed.get_rank()
        return iter(make_batches(16)[rank::2])

if __name__ == "__main__":
    torch.manual_seed(0)
    module = SgdTraining(Transformer(20, 16, 2, 1, 32, dropout=0.0),
                         OptimizationSettings(schedule="constant", warmup_steps=0))
    pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", max_steps=1, logger=False,
               enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
               use_distributed_sampler=False, default_root_dir=sys.argv[3],
    ).fit(module, Half())
    torch.save([p.detach() for p in module.parameters()], sys.argv[3] + "/weights.pt")
"""


def test_two_ranks_make_the_step_of_one(tmp_path):
    here = Path(__file__).parent
    (tmp_path / "two_ranks.py").write_text(TWO_RANKS)
    subprocess.run(
        [sys.executable, tmp_path / "two_ranks.py", here, here.parent, tmp_path],
        check=True,
        capture_output=True,
        timeout=200,
    )
    ranks = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.testing.assert_close(ranks, train(make_batches(32), tmp_path), rtol=1e-4, atol=1e-6)


def test_matrices_are_decayed_and_vectors_are_not(tmp_path):
    module = make_module()
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    decayed, others = module.configure_optimizers()["optimizer"].param_groups
    assert decayed["weight_decay"] == 0.01
    assert others["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(module.parameters()))


def test_a_validation_decodes_the_given_fraction_of_every_batch(tmp_path):
    module, decoded = make_module(), []
    module.decoded_fraction = 0.5
    decode = module._decode
    module._decode = lambda ids, *most: decoded.append(len(ids)) or decode(ids, *most)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.validate(module, Batches(make_batches(4)), verbose=False)
    assert 0.0 <= trainer.callback_metrics["valid_exact_match"] <= 100.0
    assert decoded == [2] * 8
    assert trainer.callback_metrics["valid_perplexity"] > 1.0


def test_a_checkpoint_loads_without_pickle(tmp_path):
    module = make_module()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, Batches(make_batches(8)))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert state["global_step"] == 2
    module.load_state_dict(state["state_dict"])
