"""Export to ONNX: the encoder, and one step of the decoder with its cache, traced from block.py."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dragoman.engines.parity import ExportedModel
from dragoman.model import block
from dragoman.model.cpu_training import Dropout
from dragoman.model.transformer import (
    SinusoidalPositions,
    Transformer,
    rotate,
    sinusoidal_positions,
)
from dragoman.tokenizers.tokenizer import BOS_ID, EOS_ID, PAD_ID

_ENCODER, _DECODER_STEP = "encoder.onnx", "decoder_step.onnx"
_OPSET = 18
_LONGEST = 100  # tokens of an output in the README's loop


def write_onnx(network: Transformer, folder: Path) -> dict[str, Any]:
    """Write `network` as two graphs, and a README, into `folder`; return what export.json says.

    Encoder: source ids (B, S) -> the source's mask (B, 1, 1, S), and its keys and values (B, S, 2 D)
    for each decoder layer. Decoder step: ids (B,), these, and the keys and values (B, T, 2 D) of the
    T target tokens before -> log-probabilities (B, V) of the next token, and the cache of T + 1.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    for name in ("source_positions", "target_positions", "rotation"):
        positions = getattr(network, name)
        if isinstance(positions, SinusoidalPositions):
            setattr(network, name, _Sinusoids(positions.d_model))
    numbers = range(len(network.transformer.decoder.layers))
    sources, targets, grown = (
        [f"{name}_{i}" for i in numbers] for name in ("source", "target", "grown")
    )
    sizes = {
        **{name: {0: "rows", 1: "source"} for name in ("source_ids", *sources)},
        **{name: {0: "rows", 1: "target"} for name in targets},
        **{name: {0: "rows", 1: "grown"} for name in grown},
        "ids": {0: "rows"},
        "source_mask": {0: "rows", 3: "source"},
        "log_probs": {0: "rows"},
    }
    source_ids = torch.tensor([[EOS_ID] * 5, [EOS_ID] * 3 + [PAD_ID] * 2])  # padded: it is masked
    encoder, step = _Encoder(network).eval(), _DecoderStep(network).eval()
    with torch.no_grad():
        source = encoder(source_ids)
    past = [torch.zeros(2, 4, 2 * network.d_model) for _ in numbers]
    first_ids, memory = torch.full((2,), BOS_ID), ["source_mask", *sources]
    for module, name, inputs, input_names, output_names in (
        (encoder, _ENCODER, (source_ids,), ["source_ids"], memory),
        (step, _DECODER_STEP, (first_ids, *source, *past), ["ids", *memory, *targets],
         ["log_probs", *grown]),
    ):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated; checks of lengths, which are constants
            torch.onnx.export(
                module,
                inputs,
                folder / name,
                input_names=input_names,
                output_names=output_names,
                dynamic_axes={one: sizes[one] for one in (*input_names, *output_names)},
                opset_version=_OPSET,
                dynamo=False,  # by tracing: the newer exporter needs onnxscript
            )
    positions = network.longest_target
    limit = f"at most {positions} tokens, with their ends" if positions else "any length"
    longest = min(_LONGEST, positions or _LONGEST)
    readme = Path(__file__).with_name("onnx_readme.md").read_text(encoding="utf-8")
    readme = readme.replace("LIMIT", limit).replace("LONGEST", str(longest))
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return {
        "positions": positions,  # null: any length
        "source_vocab_size": network.source_vocab_size,
        "target_vocab_size": network.target_vocab_size,
        "pad_id": network.pad_id,
        "bos_id": network.bos_id,
        "eos_id": network.eos_id,
        "never_emitted": list(network.never_emitted),
        "cache_width": 2 * network.d_model,
    }


class OnnxModel(ExportedModel):
    """The exported model in `folder`, run by ONNX Runtime to check it."""

    name = "onnx"

    def __init__(self, folder: Path, num_positions: int | None = None) -> None:
        import onnxruntime

        super().__init__(num_positions)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are raised too
        self._encoder, self._decoder_step = (
            onnxruntime.InferenceSession(folder / name, options, ["CPUExecutionProvider"])
            for name in (_ENCODER, _DECODER_STEP)
        )
        names = [value.name for value in self._decoder_step.get_inputs()]
        self._source_names = [value.name for value in self._encoder.get_outputs()]
        self._target_names = [name for name in names if name.startswith("target_")]

    def decode(self, source: Sequence[int], longest: int) -> list[int]:
        """Return the greedy output of a source."""
        state, emitted = self._start(source), [BOS_ID]
        while emitted[-1] != EOS_ID and len(emitted) <= longest:
            emitted.append(int(self._step(emitted[-1], state).argmax()))
        return emitted[1:]

    def score_tokens(self, source: Sequence[int], emitted: Sequence[int]) -> list[float]:
        """Return the log-probability of each token of an output."""
        state = self._start(source)
        return [
            float(self._step(before, state)[token])
            for before, token in zip([BOS_ID, *emitted[:-1]], emitted, strict=True)
        ]

    def _start(self, source: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Return the inputs of the first step, without its ids."""
        found = self._encoder.run(None, {"source_ids": np.array([source], np.int64)})
        empty = np.zeros((1, 0, found[-1].shape[2]), np.float32)
        return {
            **dict(zip(self._source_names, found, strict=True)),
            **dict.fromkeys(self._target_names, empty),
        }

    def _step(self, token: int, state: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the log-probabilities (V,) of the token after `token`, which is added to `state`."""
        log_probs: NDArray[np.float32]
        ids = np.array([token], np.int64)
        [log_probs], *grown = self._decoder_step.run(None, {"ids": ids, **state})
        state.update(zip(self._target_names, grown, strict=True))
        return log_probs


class _Encoder(nn.Module):
    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, source_ids: Tensor) -> tuple[Tensor | None, ...]:
        layers = _make_layers(self.network)
        cache = block.start_decoder(layers, block.encode(layers, source_ids))
        return cache.source_mask.bias, *cache.source


class _DecoderStep(nn.Module):
    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.network = network
        self.mask: Tensor
        mask = torch.zeros(network.target_vocab_size)
        mask[list(network.never_emitted)] = -torch.inf
        self.register_buffer("mask", mask)

    def forward(self, ids: Tensor, source_mask: Tensor, *keys_values: Tensor) -> tuple[Tensor, ...]:
        """`keys_values`: those of the source for each layer, then those of the target."""
        num_layers = len(keys_values) // 2
        source, past = keys_values[:num_layers], keys_values[num_layers:]
        produced: list[Tensor] = []  # queries, keys and values of `ids`, layer by layer

        def record(layer: block.Layer) -> block.Layer:
            # The tracer loses what `decode` writes into the cache.
            def project(x: Tensor) -> Tensor:
                produced.append(layer.self_qkv(x))
                return produced[-1]

            return replace(layer, self_qkv=project)

        layers = _make_layers(self.network)
        cache = block.DecoderCache(
            source=source,
            source_mask=block.Mask(source_mask),
            target=tuple(nn.functional.pad(one, (0, 0, 0, 1)) for one in past),
            length=past[0].shape[1],
        )
        states = block.decode(
            replace(layers, decoder=tuple(map(record, layers.decoder))), ids[:, None], cache
        )
        log_probs = (self.network.project(states) + self.mask).log_softmax(dim=-1)
        return log_probs, *(
            torch.cat((one, self._take_key_value(new, cache.length)), dim=1)
            for one, new in zip(past, produced, strict=True)
        )

    def _take_key_value(self, qkv: Tensor, position: int) -> Tensor:
        """Return the keys and values as the cache keeps them: (B, 3 D) -> (B, 1, 2 D)."""
        network = self.network
        _, key, value = qkv.chunk(3, dim=1)
        if network.rotation is not None:
            by_head = key.view(key.shape[0], network.nhead, 1, -1)
            key = rotate(by_head, network.rotation(position, position + 1)).flatten(1)
        return torch.cat((key, value), dim=1)[:, None]


def _make_layers(network: Transformer) -> block.Layers:
    return block.make_layers(network, block.Weights(torch.float32), Dropout(0.0))


class _Sinusoids(nn.Module):
    """`SinusoidalPositions` without its table, whose end would be that of the graph."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model

    def forward(self, start: int, stop: int) -> Tensor:
        return sinusoidal_positions(start, stop, self.d_model)
