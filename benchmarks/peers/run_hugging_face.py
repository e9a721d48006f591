"""Transformers: a Pegasus, which has its norms before the blocks, of the task's published baseline by Seq2SeqTrainer."""

from pathlib import Path

import task as shared
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    DataCollatorForSeq2Seq,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)


def train(task: Path, own: Path) -> None:
    """Train, with a checkpoint every 50 steps."""
    set_seed(1)
    sources, targets = (shared.read_rows(task, f"train.{side}") for side in ("source", "target"))
    tokenizer = make_tokenizer([*sources, *targets])
    tokenizer.save_pretrained(own / "tokenizer")
    rows = [
        {"input_ids": tokenizer(source).input_ids, "labels": tokenizer(target).input_ids}
        for source, target in zip(sources, targets, strict=True)
    ]
    config = PegasusConfig(
        vocab_size=len(tokenizer), d_model=256, encoder_layers=4, decoder_layers=4,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=1024, decoder_ffn_dim=1024,
        activation_function="relu", dropout=0.3, scale_embedding=True, max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, forced_eos_token_id=None,
        decoder_start_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    model = PegasusForConditionalGeneration(config)
    arguments = Seq2SeqTrainingArguments(
        str(own / "model"), per_device_train_batch_size=100, train_sampling_strategy="group_by_length",
        max_steps=1_000_000, learning_rate=0.001, lr_scheduler_type="inverse_sqrt", warmup_steps=360,
        label_smoothing_factor=0.1, max_grad_norm=1.0, bf16=True, use_cpu=not torch.cuda.is_available(),
        save_steps=50, save_only_model=True, dataloader_pin_memory=False, report_to="none", logging_steps=50,
    )  # fmt: skip
    Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer, model=model)
    ).train()  # fmt: skip


def decode(task: Path, own: Path) -> None:
    """Decode with the checkpoints."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(own / "tokenizer")
    rows = (
        shared.write_held_out(task, own / "held-out.txt").read_text(encoding="utf-8").splitlines()
    )
    for weights in shared.choose((own / "model").glob("checkpoint-*/*.safetensors")):
        model = PegasusForConditionalGeneration.from_pretrained(weights.parent).eval()
        outputs: list[str] = []
        for start in range(0, len(rows), 100):
            batch = tokenizer(rows[start : start + 100], padding=True, return_tensors="pt")
            ids = model.generate(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                max_length=shared.find_longest(task),
            )
            outputs += tokenizer.batch_decode(ids, skip_special_tokens=True)
        shared.write_outputs(own, weights, outputs)


def make_tokenizer(rows: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the tokens in `rows`; it adds the end of the row."""
    symbols = ["<pad>", "<s>", "</s>", "<unk>"]
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.train_from_iterator(rows, trainers.WordLevelTrainer(special_tokens=symbols))
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


if __name__ == "__main__":
    shared.call(train, decode)
