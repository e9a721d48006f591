"""A `Transformer` as two ONNX graphs: the encoder, and one step of the decoder with its cache.

They compute what `Transformer.encode` and `inference.step` compute, from the same parameters, and
are written here, not traced: `torch.onnx.export` (2.13) takes 14 s for 3 + 3 layers, makes a
constant of the batch size where the model takes `len`, and its steps are 20-40% slower.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from dragoman.engines.onnx_graph import FLOAT, INT64, Graph
from dragoman.engines.onnx_parts import Parts, integer, integers
from dragoman.model.transformer import Transformer

_KINDS = ("keys", "values")
_MASK = "source_mask"
_MASK_SHAPE = ("rows", 1, 1, "source")


def build_encoder(network: Transformer) -> Graph:
    """Return the graph from source ids to what the steps need of them.

    Inputs: `source_ids` (B, S). Outputs: `source_mask` (B, 1, 1, S), 0 for a token and -inf for
    padding, and of each decoder layer `source_keys_0` and `source_values_0` (B, H, S, Dh).
    """
    graph = Graph("encoder")
    parts = Parts(network, graph)
    ids = graph.add_input("source_ids", INT64, ("rows", "source"))
    shape = graph.apply("Shape", [ids])
    length = graph.apply("Gather", [shape, integer(1)])
    places = graph.apply("Range", [integer(0), length, integer(1)])
    mask = _mask_padding(graph, ids, places, network.pad_id)
    sizes = graph.apply(
        "Concat", [shape, integers(parts.nhead, parts.head_width)], {"axis": 0}
    )  # B, S, H, Dh
    embedded = parts.embed(ids, places, "source")
    x = graph.apply("Reshape", [embedded, integers(-1, parts.d_model)])  # (B, S, D) -> (N, D)
    for i, layer in enumerate(network.transformer.encoder.layers):
        name = f"transformer.encoder.layers.{i}"
        residual = partial(parts.add_residual, norm_first=layer.norm_first)
        attend = partial(_attend, parts=parts, name=f"{name}.self_attn", sizes=sizes, mask=mask)
        x = residual(x, f"{name}.norm1", attend)
        x = residual(x, f"{name}.norm2", partial(parts.feed_forward, layer=name))
    x = parts.normalize(x, "transformer.encoder.norm")

    graph.add_output(mask, FLOAT, _MASK_SHAPE)
    for i in range(len(network.transformer.decoder.layers)):
        name = f"transformer.decoder.layers.{i}.multihead_attn"
        for kind, part in zip(_KINDS, parts.project(x, name, ("k", "v")), strict=True):
            by_head = parts.split_heads(part, sizes, f"source_{kind}_{i}")
            graph.add_output(by_head, FLOAT, _cache_shape(parts, "source"))
    return graph


def build_decoder_step(network: Transformer) -> Graph:
    """Return the graph of one step: the token after `ids`, whose place is the length of the cache.

    Inputs: `ids` (B,), the outputs of the encoder, and of each layer `target_keys_0` and
    `target_values_0` (B, H, P, Dh), the cache of P tokens. Outputs: `log_probs` (B, V), in which
    padding and begin are -inf, and the cache with `ids` in it, `next_target_keys_0` and so on.
    """
    graph = Graph("decoder_step")
    parts = Parts(network, graph)
    layers = network.transformer.decoder.layers
    ids = graph.add_input("ids", INT64, ("rows",))
    graph.add_input(_MASK, FLOAT, _MASK_SHAPE)
    for side in ("source", "target"):
        for i in range(len(layers)):
            for kind in _KINDS:
                graph.add_input(f"{side}_{kind}_{i}", FLOAT, _cache_shape(parts, side))
    place = graph.apply("Shape", ["target_keys_0"], {"start": 2, "end": 3})
    x = parts.embed(ids, place, "target")
    for i, layer in enumerate(layers):
        name = f"transformer.decoder.layers.{i}"
        residual = partial(parts.add_residual, norm_first=layer.norm_first)
        x = residual(x, f"{name}.norm1", partial(_attend_to_target, parts=parts, layer=i))
        x = residual(x, f"{name}.norm2", partial(_attend_to_source, parts=parts, layer=i))
        x = residual(x, f"{name}.norm3", partial(parts.feed_forward, layer=name))
    logits = parts.project_to_vocabulary(parts.normalize(x, "transformer.decoder.norm"))
    log_probs = graph.apply("LogSoftmax", [logits], {"axis": -1}, name="log_probs")

    graph.add_output(log_probs, FLOAT, ("rows", network.target_vocab_size))
    for i in range(len(layers)):
        for kind in _KINDS:
            graph.add_output(
                f"next_target_{kind}_{i}", FLOAT, _cache_shape(parts, "target_and_one")
            )
    return graph


def _mask_padding(graph: Graph, ids: str, places: str, pad_id: int) -> str:
    """Return what is added to the scores of attention: see `Transformer.find_tokens`."""
    is_token = graph.apply("Not", [graph.apply("Equal", [ids, integer(pad_id)])])
    num_tokens = graph.apply(
        "ReduceSum", [graph.apply("Cast", [is_token], {"to": INT64}), integers(1)]
    )  # (B, S) -> (B, 1)
    is_empty = graph.apply("Equal", [num_tokens, integer(0)])
    is_first = graph.apply("Equal", [places, integer(0)])
    may_attend = graph.apply("Or", [is_token, graph.apply("And", [is_empty, is_first])])
    added = [np.array(value, np.float32) for value in (0.0, -np.inf)]
    mask = graph.apply("Where", [may_attend, *added])
    return graph.apply("Unsqueeze", [mask, integers(1, 2)], name=_MASK)  # (B, S) -> (B, 1, 1, S)


def _attend(x: str, parts: Parts, name: str, sizes: str, mask: str) -> str:
    """Return the attention of the source to itself."""
    query, keys, values = (
        parts.split_heads(part, sizes) for part in parts.project(x, name, ("q", "k", "v"))
    )
    mixed = parts.mix(query, keys, values, mask)
    by_token = parts.graph.apply("Transpose", [mixed], {"perm": [0, 2, 1, 3]})
    return parts.join_heads(by_token, name)


def _attend_to_target(x: str, parts: Parts, layer: int) -> str:
    """Return the attention of a token to those before it and to itself; makes the new cache."""
    name = f"transformer.decoder.layers.{layer}.self_attn"
    query, *new = (
        parts.graph.apply("Reshape", [part, _by_head(parts)])
        for part in parts.project(x, name, ("q", "k", "v"))
    )
    grown = []
    for kind, part in zip(_KINDS, new, strict=True):
        kept = f"target_{kind}_{layer}"
        grown.append(parts.graph.apply("Concat", [kept, part], {"axis": 2}, name=f"next_{kept}"))
    return parts.join_heads(parts.mix(query, *grown), name)


def _attend_to_source(x: str, parts: Parts, layer: int) -> str:
    name = f"transformer.decoder.layers.{layer}.multihead_attn"
    [query] = parts.project(x, name, ("q",))
    by_head = parts.graph.apply("Reshape", [query, _by_head(parts)])
    keys, values = (f"source_{kind}_{layer}" for kind in _KINDS)
    return parts.join_heads(parts.mix(by_head, keys, values, _MASK), name)


def _by_head(parts: Parts) -> NDArray[np.int64]:
    """Return the shape of one token by head: (B, D) -> (B, H, 1, Dh)."""
    return integers(-1, parts.nhead, 1, parts.head_width)


def _cache_shape(parts: Parts, length: str) -> tuple[str | int, ...]:
    return ("rows", parts.nhead, length, parts.head_width)
