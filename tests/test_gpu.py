"""What must also hold on a GPU: run there by `pytest -m gpu` or benchmarks/gpu.py; elsewhere on the CPU."""

import shutil
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from conftest import BOS, EOS, pad_right, quiet_console, random_ids, write_pairs
from dragoman import PairDataModule, fit, read_settings
from dragoman.decoding.search import score_targets, search
from dragoman.decoding.search_config import SearchConfig
from dragoman.model.loss import sum_losses
from dragoman.model.transformer import Transformer
from dragoman.settings import DecodingSettings, OptimizationSettings
from dragoman.training import checkpoints
from dragoman.training.logs import METRICS_FILE
from dragoman.training.module import TransformerTraining
from dragoman.training.trainer import NonFiniteSteps, WeightAveraging
from networks import join, make_network, make_sources
from runs import settings

_IS_ABSENT = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, _IS_ABSENT])])
def device(request):
    return request.param


def test_loss_and_gradients_are_those_of_the_reference(network, device):
    network.to(device)
    source, body = pad_right(random_ids(4, 7, 23), 2), random_ids(4, 6, 23, seed=1)
    source[1, 3:], source[2] = 0, 0
    target = torch.cat((torch.full((4, 1), BOS), body, torch.full((4, 1), EOS)), dim=1)
    target[1, 4:] = 0
    found = {}
    for implementation in ("fused", "reference"):
        network.zero_grad()
        sums = sum_losses(network, source.to(device), target.to(device), 0.1, implementation)
        sums.loss.backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        found[implementation] = sums.loss, sums.nll, sums.num_tokens, gradients
    torch.testing.assert_close(found["fused"], found["reference"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_cached_decoding_is_that_of_the_whole_decoder(device, beam_size):
    source_ids = join(make_sources([1, 4, 9, 2, 7]), extra=2)
    decoding = DecodingSettings(
        beam_size=beam_size, num_hypotheses=beam_size, max_length_ratio=0.0, max_length_extra=40
    )
    config = SearchConfig(decoding=decoding)
    on_cpu = search([make_network()], source_ids, config)
    network = make_network().to(device)
    found = search([network], source_ids.to(device), config)
    assert [[one.ids for one in ones] for ones in found] == [
        [one.ids for one in ones] for ones in on_cpu
    ]
    complete = [(i, one) for i, ones in enumerate(found) for one in ones if one.is_complete]
    assert complete
    rows = torch.tensor([i for i, _ in complete])
    targets = [one.ids for _, one in complete]
    scored = score_targets([network], source_ids[rows].to(device), targets, decoding)
    for (_, one), other in zip(complete, scored, strict=True):
        assert abs(one.score - other.score) < 1e-3


class Waits(Callback):
    """Lets torch warn wherever the host waits for the GPU, from the start of a step to the end of one."""

    def __init__(self, device, first, last):
        self._steps, self._is_gpu = {first - 1: "warn", last: "default"}, device == "cuda"

    def on_train_batch_start(self, trainer, *_):
        self._set(trainer.global_step, "warn")

    def on_train_batch_end(self, trainer, *_):
        self._set(trainer.global_step, "default")

    def _set(self, step, mode):
        if self._is_gpu and self._steps.get(step) == mode:
            torch.cuda.set_sync_debug_mode(mode)


def test_a_training_step_waits_for_the_device_once(device, tmp_path):
    words = ["--training.batch_tokens", "128", "--data.cache", "none"]
    data = PairDataModule(write_pairs(tmp_path / "pairs.tsv", 300), read_settings(None, words))
    data.prepare_data()
    tokenizer = data.tokenizer
    network = Transformer(
        tokenizer.source_vocab_size, 16, 2, 1, 32, target_vocab_size=tokenizer.target_vocab_size
    )
    averaging = WeightAveraging(0.9)
    trainer = lightning.Trainer(
        accelerator=device,
        devices=1,
        precision="bf16-mixed",
        max_steps=10,
        max_epochs=-1,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        log_every_n_steps=1000,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[averaging, NonFiniteSteps(quiet_console()), Waits(device, 4, 8)],
    )
    optimization = OptimizationSettings(schedule="constant", warmup_steps=0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.fit(TransformerTraining(network, optimization), datamodule=data)
    waits = [str(one.message) for one in told if "synchronizing" in str(one.message)]
    assert len(waits) <= 5, waits  # 5 steps: each reads whether its gradient is finite
    assert trainer.global_step == 10
    kept = list(averaging._average_model.module.parameters())
    assert {p.device.type for p in kept} == {device}


def test_a_resumed_run_ends_as_an_uninterrupted_one(device, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_NUM_KEPT", 1000)
    whole, part = tmp_path / "whole", tmp_path / "part"
    options = ["--training.accelerator", device, "--training.precision", "32-true"]
    pairs = write_pairs(tmp_path / "pairs.tsv", 400)
    fit(pairs, whole, settings(*options), console=quiet_console())
    shutil.copytree(f"{whole}.training", f"{part}.training")
    folder = part.with_name("part.training")
    (folder / METRICS_FILE).unlink()
    for path in (folder / "checkpoints").iterdir():
        if path.name not in ("step-5.ckpt", checkpoints.BEST):
            path.unlink()
    fit((), part, resume="must", console=quiet_console())
    ends = [load_file(out / "model.safetensors") for out in (whole, part)]
    gaps = torch.cat([(one - ends[1][name]).abs().flatten() for name, one in ends[0].items()])
    # A GPU may add in another order; without the random state the mean is 0.001.
    assert gaps.mean() <= (0.0 if device == "cpu" else 2e-4)
