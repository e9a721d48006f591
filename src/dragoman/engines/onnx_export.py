"""Export to ONNX: the encoder, and the decoder's next token, traced from the stock modules."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dragoman.decoding.hypothesis import Hypothesis, limit_lengths, normalize
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.engine import Quantization
from dragoman.model.transformer import (
    Memory,
    SinusoidalPositions,
    Transformer,
    sinusoidal_positions,
)
from dragoman.tokenizers.tokenizer import BOS_ID, EOS_ID, PAD_ID

_ENCODER, _DECODER = "encoder.onnx", "decoder.onnx"
_SIZES = {0: "rows", 1: "source"}
_OPSET = 18
_LONGEST = 100  # tokens of an output in the README's loop


def write_onnx(network: Transformer, folder: Path) -> dict[str, Any]:
    """Write `network` as two graphs, and a README, into `folder`; return what export.json says.

    Encoder: source ids (B, S) -> states (B, S, D) and is_token (B, S). Decoder: target ids (B, T),
    which begin with begin, and these two -> log-probabilities (B, V) of the token after the last.
    """
    network = _prepare(network)
    source_ids, target_ids = torch.full((2, 5), EOS_ID), torch.full((2, 4), BOS_ID)
    encoder, decoder = _Encoder(network), _Decoder(network)
    with torch.no_grad():
        states, is_token = encoder(source_ids)
    _trace(
        encoder, folder / _ENCODER, {"source_ids": source_ids},
        {"source_ids": _SIZES, "states": _SIZES, "is_token": _SIZES},
    )  # fmt: skip
    _trace(
        decoder, folder / _DECODER, {"target_ids": target_ids, "states": states, "is_token": is_token},
        {"target_ids": {0: "rows", 1: "target"}, "states": _SIZES, "is_token": _SIZES,
         "log_probs": {0: "rows"}},
    )  # fmt: skip
    positions = network.longest_target
    limit = "any length" if positions is None else f"at most {positions} tokens, with their ends"
    card = _CARD.replace("LIMIT", limit).replace(
        "LONGEST", str(min(_LONGEST, positions or _LONGEST))
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return {
        "positions": positions,  # null: any length
        "source_vocab_size": network.source_vocab_size,
        "target_vocab_size": network.target_vocab_size,
        "pad_id": network.pad_id,
        "bos_id": network.bos_id,
        "eos_id": network.eos_id,
    }


class OnnxModel:
    """The exported model in `folder`, run by ONNX Runtime to check it: greedy search and scores."""

    name = "onnx"
    quantization: Quantization = "float32"

    def __init__(self, folder: Path, num_positions: int | None = None) -> None:
        import onnxruntime

        self._num_positions = num_positions
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are raised too
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(folder / name, options, ["CPUExecutionProvider"])
            for name in (_ENCODER, _DECODER)
        )

    def search(
        self,
        sources: Sequence[Sequence[int]],
        config: SearchConfig,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the greedy hypothesis of each source; of the settings, only the lengths count."""
        assert prefixes is None
        limits = limit_lengths([len(ids) for ids in sources], config.decoding, self._num_positions)
        memory = self._encode(sources)
        tokens, log_probs = np.full((len(sources), 1), BOS_ID), np.zeros((len(sources), 1))
        has_ended = np.zeros(len(sources), bool)
        while not has_ended.all():
            predicted = self._predict(tokens, memory)
            tokens = np.concatenate((tokens, predicted.argmax(axis=1)[:, None]), axis=1)
            log_probs = np.concatenate((log_probs, predicted.max(axis=1)[:, None]), axis=1)
            length = tokens.shape[1] - 1
            has_ended |= (tokens[:, -1] == EOS_ID) | [length >= limit.longest for limit in limits]
        found = []
        for row, scores, limit in zip(
            tokens[:, 1:].tolist(), log_probs[:, 1:].tolist(), limits, strict=True
        ):
            is_complete = EOS_ID in row[: limit.longest]
            length = row.index(EOS_ID) + 1 if is_complete else limit.longest
            score = sum(scores[:length])
            one = Hypothesis(
                ids=tuple(row[: length - is_complete]),
                score=score,
                normalized_score=normalize(score, length, config.decoding),
                is_complete=is_complete,
            )
            found.append([one])
        return found

    def score(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        config: SearchConfig,
    ) -> list[Hypothesis]:
        """Return each target with its log-probabilities: see `Engine.score`."""
        memory = self._encode(sources)
        tokens = _pad([[BOS_ID, *ids, EOS_ID] for ids in targets])
        steps = [
            np.take_along_axis(self._predict(tokens[:, :i], memory), tokens[:, i : i + 1], axis=1)
            for i in range(1, tokens.shape[1])
        ]
        found = []
        for ids, row in zip(targets, np.concatenate(steps, axis=1).tolist(), strict=True):
            log_probs = tuple(row[: len(ids) + 1])
            found.append(
                Hypothesis(
                    ids=tuple(ids),
                    score=sum(log_probs),
                    normalized_score=normalize(sum(log_probs), len(log_probs), config.decoding),
                    is_complete=True,
                    log_probs=log_probs,
                )
            )
        return found

    def _encode(self, sources: Sequence[Sequence[int]]) -> dict[str, NDArray[Any]]:
        states, is_token = self._encoder.run(None, {"source_ids": _pad(sources)})
        return {"states": states, "is_token": is_token}

    def _predict(
        self, tokens: NDArray[np.int64], memory: dict[str, NDArray[Any]]
    ) -> NDArray[np.float32]:
        log_probs: NDArray[np.float32]
        [log_probs] = self._decoder.run(None, {"target_ids": tokens, **memory})
        return log_probs


class _Encoder(nn.Module):
    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, source_ids: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.network.encode(source_ids)
        return memory.states, memory.is_token


class _Decoder(nn.Module):
    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.network = network
        self.mask: Tensor
        mask = torch.zeros(network.target_vocab_size)
        mask[[network.pad_id, network.bos_id]] = -torch.inf  # they are never emitted
        self.register_buffer("mask", mask)

    def forward(self, target_ids: Tensor, states: Tensor, is_token: Tensor) -> Tensor:
        memory = Memory(states=states, is_token=is_token)
        last = self.network.decode_states(target_ids, memory)[:, -1]  # (B, T, D) -> (B, D)
        return (self.network.project(last) + self.mask).log_softmax(dim=-1)


class _Sinusoids(nn.Module):
    """`SinusoidalPositions` without its table, whose end would be that of the graph."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model

    def forward(self, start: int, stop: int) -> Tensor:
        return sinusoidal_positions(start, stop, self.d_model)


def _prepare(network: Transformer) -> Transformer:
    """Return a copy that can be traced for every size.

    Queries, keys and values get a matrix each: torch 2.13 splits one matrix for all by `unflatten`,
    which the exporter writes with the sizes of the example as constants.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention):
            assert module.in_proj_weight is not None
            query, key, value = module.in_proj_weight.detach().chunk(3)
            module._qkv_same_embed_dim = False
            module.q_proj_weight, module.k_proj_weight, module.v_proj_weight = (
                nn.Parameter(query), nn.Parameter(key), nn.Parameter(value)
            )  # fmt: skip
            module.register_parameter("in_proj_weight", None)
    for name in ("source_positions", "target_positions"):
        if isinstance(getattr(network, name), SinusoidalPositions):
            setattr(network, name, _Sinusoids(network.d_model))
    return network


def _trace(
    module: nn.Module, path: Path, inputs: dict[str, Tensor], sizes: dict[str, dict[int, str]]
) -> None:
    """Write the graph of `module`; `sizes` names the dimensions that may change.

    The exporter by tracing, because the newer one (dynamo) needs onnxscript.
    """
    has_fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a layer, unknown to ONNX
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated; checks of lengths, which are constants
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=[name for name in sizes if name not in inputs],
                dynamic_axes=sizes,
                opset_version=_OPSET,
                dynamo=False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(has_fastpath)


def _pad(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    padded = np.full((len(rows), max(map(len, rows))), PAD_ID, np.int64)
    for row, filled in zip(rows, padded, strict=True):
        filled[: len(row)] = row
    return padded


_CARD = '''# The model in ONNX

It runs where ONNX Runtime does; neither PyTorch nor CTranslate2 nor dragoman is needed.

- `encoder.onnx`: `source_ids` (rows, source) to `states` and `is_token`, once for each source
- `decoder.onnx`: `target_ids` (rows, target) and these two to `log_probs` (rows, vocabulary): the
  log-probabilities of the token after the last one
- `export.json`: special ids, sizes, the SHA-256 of the weights that were exported, and how the outputs
  compare with PyTorch's

Sources and outputs have LIMIT. There is no cache: each step computes the whole output again.

## Use

Ids in, ids out. A source ends with `eos_id`; shorter ones are padded on the right with `pad_id`. An
output begins after `bos_id`. `tokenizer.json` in the folder above says which token has which id
(`dragoman.PairTokenizer` reads it).

```python
import json
from pathlib import Path
import numpy as np
import onnxruntime

about = json.loads(Path("export.json").read_text())
encoder = onnxruntime.InferenceSession("encoder.onnx")
decoder = onnxruntime.InferenceSession("decoder.onnx")
pad, begin, end = about["pad_id"], about["bos_id"], about["eos_id"]

def decode(sources, longest=LONGEST):
    """Return the greedy output of each source: ids without begin and end."""
    source_ids = np.full((len(sources), max(map(len, sources))), pad, np.int64)
    for row, source in zip(source_ids, sources):
        row[: len(source)] = source
    states, is_token = encoder.run(None, {"source_ids": source_ids})
    memory = {"states": states, "is_token": is_token}
    ids = np.full((len(sources), 1), begin, np.int64)
    has_ended = np.zeros(len(sources), bool)
    while ids.shape[1] <= longest and not has_ended.all():
        [log_probs] = decoder.run(None, {"target_ids": ids, **memory})
        best = log_probs.argmax(axis=1)
        has_ended |= best == end
        ids = np.concatenate((ids, np.where(has_ended, pad, best)[:, None]), axis=1)
    return [[token for token in row[1:] if token != pad] for row in ids.tolist()]

if __name__ == "__main__":
    print(decode([[4, 4, end], [4, end]]))
```

A row depends on its own source only. To follow several hypotheses of a source, as in a beam, repeat
the rows of `states` and `is_token`.
'''
