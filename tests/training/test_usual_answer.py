"""The script of the usual answer to "How can Lightning be used with nn.Transformer?", on our classes."""

import lightning as pl
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from conftest import BOS, EOS, PAD
from dragoman import Batch, LightningTransformer
from dragoman.errors import DataError, SettingsError, TrainingError
from dragoman.settings import OptimizationSettings


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


def make_model(**arguments):
    pl.seed_everything(0, verbose=False)
    return LightningTransformer(vocab_size=20, d_model=16, nhead=2, num_layers=1, **arguments)


def load(*batches):
    return DataLoader(batches, batch_size=None)


SOURCE = torch.tensor([[5, 6, 7, PAD], [8, 9, PAD, PAD]])
TARGET = torch.tensor([[BOS, 7, 6, EOS, PAD], [BOS, 9, EOS, PAD, PAD]])
LABELS = TARGET.masked_fill(TARGET == PAD, -100)


@pytest.mark.parametrize(
    "batch",
    [
        [SOURCE, TARGET],
        (SOURCE.int(), LABELS.int()),
        Batch(source_ids=SOURCE, target_ids=TARGET),
        {"source_ids": SOURCE, "target_ids": TARGET},
        {
            "input_ids": SOURCE.masked_fill(SOURCE == PAD, 19),
            "attention_mask": (SOURCE != PAD).long(),
            "labels": LABELS,
        },
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_the_same_rows_in_any_form_have_the_same_loss(batch, tmp_path):
    trainer, model = make_trainer(tmp_path, max_steps=1), make_model()
    [[plain], [found]] = (
        trainer.validate(model, load(one), verbose=False) for one in ((SOURCE, TARGET), batch)
    )
    assert found == plain
    trainer.fit(model, load(batch))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((SOURCE, TARGET, torch.tensor([3, 2])), "with 3 parts: Tensor, Tensor, Ten"),
        ({"src": SOURCE, "tgt": TARGET}, "found a dict with names src, tgt"),
        ((SOURCE,), "targets are needed"),
        ((SOURCE + 13, TARGET), "source_ids: found id 22, and the vocabulary has 0 to 19"),
        ((SOURCE, TARGET + 80), "target_ids: found id 89, and the vocabulary has 0 to 19"),
        ((LABELS, TARGET), "source_ids: found id -100"),
        ((SOURCE.float(), TARGET), "expected whole numbers .* found float32"),
        ((SOURCE[0], TARGET), r"found int64 in one of shape \(4,\)"),
        ((SOURCE.T, TARGET.T), "4 rows of source_ids and 5 of target_ids"),
    ],
)
def test_a_batch_that_cannot_be_right_is_refused(batch, message, tmp_path):
    with pytest.raises(DataError, match=message):
        make_trainer(tmp_path, max_steps=1).fit(make_model(), load(batch))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((SOURCE, TARGET[:, 1:]), "2 of 2 targets are not bos_id 1, tokens, eos_id 2"),
        ((SOURCE, torch.tensor([[BOS, 5, EOS], [5, EOS, PAD]])), "1 of 2 targets are not"),
        ((SOURCE, TARGET.masked_fill(TARGET == EOS, PAD)), "2 of 2 targets are not"),
        ((SOURCE.flip(1), TARGET), "padding stands before tokens"),
        ((SOURCE, torch.tensor([[BOS, 5, EOS], [PAD, BOS, EOS]])), "padding stands before tokens"),
        ((TARGET[:, :4].T, TARGET[:, :4].T), r"look like \(length, rows\)"),
    ],
)
def test_rows_that_look_wrong_are_warned_of_once(batch, message, tmp_path):
    with pytest.warns(UserWarning, match=message) as warned:
        make_trainer(tmp_path, max_steps=3).fit(make_model(), load(*[batch] * 3))
    ours = [one for one in warned if one.filename.endswith("lightning_transformer.py")]
    assert len(ours) == 1


def test_batches_of_no_length_are_as_padding(tmp_path):
    empty, model = torch.empty(2, 0, dtype=torch.long), make_model()
    trainer = make_trainer(tmp_path, max_steps=4)
    trainer.fit(
        model, load((empty, TARGET), (SOURCE, empty), (SOURCE, TARGET[:, :1] * 0), (empty, empty))
    )
    assert model.num_skipped == 0
    assert model.generate(empty, 5) == model.generate(torch.full((2, 3), PAD), 5)
    assert model(empty, TARGET).isfinite().all()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own
def test_a_compiled_model_trains_and_validates_without_the_compilation(tmp_path):
    model, batches = make_model(), load((SOURCE, TARGET))
    with pytest.warns(UserWarning, match=r"torch\.compile is not used"):
        make_trainer(tmp_path, max_steps=1).fit(torch.compile(model), batches, batches)
    assert model.validated_step == 1


def test_losses_that_are_not_finite_are_reported_and_end_the_training(tmp_path, capsys):
    model = make_model()
    torch.nn.init.constant_(model.network.target_embedding.weight, torch.nan)
    with pytest.raises(TrainingError, match=r"step 5 skipped: non-finite loss .*5 in a row"):
        make_trainer(tmp_path, max_steps=20).fit(model, load(*load(*[(SOURCE, TARGET)] * 20)))
    assert "step 1 skipped: non-finite loss" in capsys.readouterr().err


def test_a_checkpoint_keeps_the_optimization(tmp_path):
    optimization = OptimizationSettings(learning_rate=0.5, schedule="cosine", label_smoothing=0.2)
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(make_model(optimization=optimization, never_emitted=[3]), load((SOURCE, TARGET)))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = LightningTransformer.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.optimization.model_dump() == optimization.model_dump()
    assert loaded.network.never_emitted == (PAD, BOS, 3)
    assert loaded.hparams["d_model"] == 16
    other = OptimizationSettings(learning_rate=0.1)
    loaded = LightningTransformer.load_from_checkpoint(
        tmp_path / "model.ckpt", weights_only=True, optimization=other
    )
    assert loaded.optimization == other


@pytest.mark.parametrize(
    ("optimization", "message"),
    [({"lr": 0.1}, "optimization.lr: .* did you mean optimization.learning_rate[?]"),
     ({"clip_norm": 0.5}, "clip_norm: only `dragoman fit` uses this; here the Trainer clips")],
)  # fmt: skip
def test_an_optimization_that_would_be_ignored_is_refused(optimization, message):
    with pytest.raises(SettingsError, match=message):
        make_model(optimization=optimization)


def test_a_validation_decodes_no_further_than_its_references_need(tmp_path):
    model = make_model()
    model.network.output = torch.nn.Linear(16, 24)  # a bias against the end, so that none comes
    with torch.no_grad():
        model.network.output.bias[EOS] = -100.0
    model.network.is_tied = False
    trainer = make_trainer(tmp_path, max_steps=1)
    [scores] = trainer.validate(model, load((SOURCE, TARGET)), verbose=False)
    assert [len(row.hypothesis) for row in model.decoded_rows] == [2 * 2 + 10, 2 * 1 + 10]
    assert not any(row.is_complete for row in model.decoded_rows)
    assert scores["valid_exact_match"] == 0.0
    assert scores["valid_token_error_rate"] > 100.0
