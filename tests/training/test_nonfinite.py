import lightning
import pytest
import torch

from conftest import make_words, quiet_console
from dragoman import PairDataModule, read_settings
from dragoman.errors import TrainingError
from dragoman.model.transformer import Transformer
from dragoman.settings import OptimizationSettings
from dragoman.training.module import TransformerTraining
from dragoman.training.trainer import MOST_IN_A_ROW, NonFiniteSteps


def train(tmp_path, rows, max_steps, break_network, accumulate=1, precision="32-true"):
    """Train a network with non-finite weights; return it, the callback and the messages."""
    (tmp_path / "pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    (tmp_path / "valid.tsv").write_text("abc\tABC\n")
    words = ["--training.batch_tokens", "100", "--data.valid", str(tmp_path / "valid.tsv")]
    settings = read_settings(None, words)
    data = PairDataModule(tmp_path / "pairs.tsv", settings)
    data.prepare_data()
    torch.manual_seed(0)
    network = Transformer(
        data.tokenizer.source_vocab_size, 16, 2, 1, 32, dropout=0.0,
        target_vocab_size=data.tokenizer.target_vocab_size,
    )  # fmt: skip
    break_network(network, data.tokenizer)
    console = quiet_console()
    callback = NonFiniteSteps(console)
    module = TransformerTraining(
        network, OptimizationSettings(schedule="constant", warmup_steps=0, weight_decay=0.1)
    )
    before = [parameter.detach().clone() for parameter in network.parameters()]
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=max_steps, max_epochs=-1, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[callback], precision=precision,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    try:
        trainer.fit(module, data)
    finally:
        message = console.file.getvalue()
    return module, callback, message, before


def poison(letter):
    """Set the embedding of one source letter to NaN."""

    def apply(network, tokenizer):
        [[id_, _]] = tokenizer.encode_sources([letter], [()])
        with torch.no_grad():
            network.source_embedding.weight[id_] = torch.nan

    return apply


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "32-true"), (2, "bf16-mixed")])
def test_a_step_with_a_non_finite_loss_is_skipped_and_its_row_is_named(
    tmp_path, accumulate, precision
):
    rows = [(word, word.upper()) for word in make_words(200)]
    rows[136] = ("abz", "ABZ")
    module, callback, message, before = train(
        tmp_path, rows, 20, poison("z"), accumulate=accumulate, precision=precision
    )
    steps = 20 * accumulate
    assert 0 < callback.num_skipped < steps / 2
    assert f"1 rows: {tmp_path}/pairs.tsv:137" in message
    assert f"({1} in a row, {callback.num_skipped} in all)" in message
    after = list(module.network.parameters())
    changed = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
    assert sum(changed) > len(changed) / 2
    assert sum(not parameter.isfinite().all() for parameter in after) == 1
    assert module.trainer.callback_metrics["train_loss"].isfinite()


def test_a_few_skipped_steps_in_a_row_end_the_run(tmp_path):
    rows = [(word, word.upper()) for word in make_words(100)]

    def break_all(network, _):
        with torch.no_grad():
            network.target_embedding.weight[1] = torch.inf

    with pytest.raises(TrainingError) as fault:
        train(tmp_path, rows, 20, break_all)
    message = str(fault.value)
    assert f"step {MOST_IN_A_ROW} skipped: non-finite loss or gradient" in message
    assert f"({MOST_IN_A_ROW} in a row, {MOST_IN_A_ROW} in all)" in message
    assert "optimization.learning_rate" in message
    assert "training.precision 32-true" in message
    assert "pairs.tsv:" in message
    assert ", …" in message


def test_a_skipped_step_changes_neither_weights_nor_moments(tmp_path):
    rows = [("abz", "ABZ")] * 60
    module, callback, _, before = train(tmp_path, rows, MOST_IN_A_ROW - 1, poison("z"))
    assert callback.num_skipped == MOST_IN_A_ROW - 1
    for now, then in zip(module.network.parameters(), before, strict=True):
        assert torch.equal(now.nan_to_num(), then.nan_to_num())
    assert not module.trainer.optimizers[0].state
