"""The parts of a `Transformer` as ONNX operators: functions from names of values to such a name.

States are (N, D), a row a token, because ONNX has a product with a transposed matrix and a bias for
two dimensions only. Parameters have their own names; a third of a projection of attention has the
letters q, k, v behind it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from dragoman.engines.onnx_graph import FLOAT, Graph, Value
from dragoman.errors import ModelFolderError
from dragoman.model.transformer import LearnedPositions, Transformer

Kind = Literal["q", "k", "v"]

_THIRDS: tuple[Kind, ...] = ("q", "k", "v")  # of `in_proj_weight`, as nn.MultiheadAttention has it
_ACTIVATIONS = {F.relu: "Relu", F.gelu: "Gelu"}


class Parts:
    """The parts of `network`, put into `graph` as they are called."""

    def __init__(self, network: Transformer, graph: Graph) -> None:
        self.graph = graph
        self.d_model, self.nhead = network.d_model, network.nhead
        self.head_width = network.d_model // network.nhead
        self._network = network
        self._state = {n: p.detach().float().cpu().numpy() for n, p in network.named_parameters()}

    def embed(self, ids: str, places: str, side: Literal["source", "target"]) -> str:
        """Return the embeddings of `ids`, (B, L) or (B,), at `places`, (L,) or (1,)."""
        graph, name = self.graph, f"{side}_positions"
        scale = np.array(math.sqrt(self.d_model), np.float32)
        scaled = graph.apply("Mul", [graph.apply("Gather", [self._add_table(side), ids]), scale])
        if isinstance(self._network.get_submodule(name), LearnedPositions):
            vectors = graph.apply("Gather", [self._add(f"{name}.weight"), places])
        else:
            vectors = self._compute_sinusoids(places)
        return graph.apply("Add", [scaled, vectors])

    def normalize(self, x: str, name: str) -> str:
        """Return `x` by the layer norm `name`."""
        norm = self._network.get_submodule(name)
        assert isinstance(norm, nn.LayerNorm)
        parameters = [self._add(f"{name}.weight"), self._add(f"{name}.bias")]
        attributes = {"axis": -1, "epsilon": norm.eps}
        return self.graph.apply("LayerNormalization", [x, *parameters], attributes)

    def add_residual(
        self, x: str, norm: str, sublayer: Callable[[str], str], *, norm_first: bool
    ) -> str:
        """Return `x` with what `sublayer` makes of it, normalised by `norm` before or after."""
        if norm_first:
            return self.graph.apply("Add", [x, sublayer(self.normalize(x, norm))])
        return self.normalize(self.graph.apply("Add", [x, sublayer(x)]), norm)

    def feed_forward(self, x: str, layer: str) -> str:
        """Return `x` by the two linear maps of `layer`.

        Raises:
            ModelFolderError: Its activation is neither relu nor gelu.
        """
        activation: Any = self._network.get_submodule(layer).activation
        if activation not in _ACTIVATIONS:
            raise ModelFolderError(
                f"the export to ONNX has no activation {activation}: it has relu and gelu"
            )
        wide = self.multiply(x, f"{layer}.linear1.weight", f"{layer}.linear1.bias")
        wide = self.graph.apply(_ACTIVATIONS[activation], [wide])
        return self.multiply(wide, f"{layer}.linear2.weight", f"{layer}.linear2.bias")

    def project(self, x: str, attention: str, kinds: Sequence[Kind]) -> list[str]:
        """Return queries, keys or values (`kinds`: neighbours), each (N, D), of `attention`."""
        first = _THIRDS.index(kinds[0]) * self.d_model
        rows = slice(first, first + len(kinds) * self.d_model)
        projected = self.graph.apply(
            "Gemm",
            [
                x,
                self._add(f"{attention}.in_proj_weight", rows, f".{''.join(kinds)}"),
                self._add(f"{attention}.in_proj_bias", rows, f".{''.join(kinds)}"),
            ],
            {"transB": 1},
        )
        if len(kinds) == 1:
            return [projected]
        attributes = {"axis": 1, "num_outputs": len(kinds)}
        return self.graph.apply_many("Split", [projected], [""] * len(kinds), attributes)

    def split_heads(self, x: str, sizes: Value, name: str = "") -> str:
        """Return `x` (N, D) as (B, H, S, Dh); `sizes` are B, S, H and Dh."""
        by_head = self.graph.apply("Reshape", [x, sizes])
        return self.graph.apply("Transpose", [by_head], {"perm": [0, 2, 1, 3]}, name=name)

    def mix(self, queries: str, keys: str, values: str, mask: str | None = None) -> str:
        """Return the mean of the values for each query, all by head; `mask` is added to scores."""
        graph = self.graph
        turned = graph.apply("Transpose", [keys], {"perm": [0, 1, 3, 2]})
        scale = np.array(1.0 / math.sqrt(self.head_width), np.float32)
        scores = graph.apply("Mul", [graph.apply("MatMul", [queries, turned]), scale])
        if mask is not None:
            scores = graph.apply("Add", [scores, mask])
        return graph.apply("MatMul", [graph.apply("Softmax", [scores], {"axis": -1}), values])

    def join_heads(self, mixed: str, attention: str) -> str:
        """Return `mixed` (B, S, H, Dh), or (B, H, 1, Dh), as (N, D), by the last linear map."""
        joined = self.graph.apply("Reshape", [mixed, integers(-1, self.d_model)])
        return self.multiply(joined, f"{attention}.out_proj.weight", f"{attention}.out_proj.bias")

    def multiply(self, x: str, weight: str, bias: str) -> str:
        """Return the linear map of `x` by two parameters."""
        return self.graph.apply("Gemm", [x, self._add(weight), self._add(bias)], {"transB": 1})

    def project_to_vocabulary(self, x: str) -> str:
        """Return the logits of `x`, (N, V); padding and begin, which are never said, are -inf."""
        network, size = self._network, self._network.target_vocab_size
        if network.output is None:
            weight = self._add_table("target")
            values = np.zeros(size, np.float32)
        else:
            weight = self._add("output.weight", slice(size))
            values = self._state["output.bias"][:size].copy()
        values[[network.pad_id, network.bos_id]] = -np.inf
        bias = self.graph.add_parameter("output.bias", values)
        return self.graph.apply("Gemm", [x, weight, bias], {"transB": 1})

    def _add_table(self, side: Literal["source", "target"]) -> str:
        """Return the embedding of `side`, without the rows that round it up."""
        network = self._network
        if side == "source" and network.source_embedding is not network.target_embedding:
            return self._add("source_embedding.weight", slice(network.source_vocab_size))
        return self._add("target_embedding.weight", slice(network.target_vocab_size))

    def _compute_sinusoids(self, places: str) -> str:
        """Return what `sinusoidal_positions` gives for `places`, (L, D): there is no table to end."""
        graph = self.graph
        even = torch.arange(0, self.d_model, 2, dtype=torch.float32)
        frequencies = torch.exp(even * (-math.log(10000.0) / self.d_model)).numpy()
        column = graph.apply("Unsqueeze", [places, integers(1)])
        angle = graph.apply(
            "Mul",
            [
                graph.apply("Cast", [column], {"to": FLOAT}),
                graph.add_parameter("frequencies", frequencies),
            ],
        )  # (L, ceil(D/2))
        waves = [
            graph.apply("Unsqueeze", [graph.apply(wave, [angle]), integers(2)])
            for wave in ("Sin", "Cos")
        ]
        pairs = graph.apply("Concat", waves, {"axis": 2})
        interleaved = graph.apply("Reshape", [pairs, integers(-1, 2 * len(frequencies))])
        if self.d_model % 2 == 0:
            return interleaved
        return graph.apply("Slice", [interleaved, integers(0), integers(self.d_model), integers(1)])

    def _add(self, name: str, rows: slice = slice(None), suffix: str = "") -> str:
        return self.graph.add_parameter(f"{name}{suffix}", self._state[name][rows])


def integer(value: int) -> NDArray[np.int64]:
    """Return `value` as a constant without dimensions."""
    return np.array(value, np.int64)


def integers(*values: int) -> NDArray[np.int64]:
    """Return `values` as a constant of one dimension."""
    return np.array(values, np.int64)
