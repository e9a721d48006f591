"""The weights of a model folder: what must be in the file, compared before any of it is taken.

The file is safetensors: 8 bytes for the length of a JSON header, the header with the type, the shape
and the place of each tensor, and their bytes, one behind the other. It is read here rather than by
the package, so that one open file is checked, fingerprinted and read, now or later.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman.errors import ModelFolderError, shorten
from dragoman.model_folder.folder_files import FolderFile, parse_json
from dragoman.settings import ModelSettings

_LARGEST_BYTES = 1 << 35
_LARGEST_HEADER_BYTES = 1 << 24
_ROUNDED_ROWS = 8  # see `Transformer`: its matrices are rounded up to a multiple of it
_SHOWN = 5  # faults

Shapes = Mapping[str, tuple[int, ...]]


class WeightsFile:
    """The weights of a model folder, kept open.

    Args:
        expected: The shape of each tensor that there must be.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFolderError: It is broken, foreign, or does not fit the settings; says how.
    """

    def __init__(self, path: Path, expected: Shapes) -> None:
        self._file = FolderFile(path, _LARGEST_BYTES)
        self._starts: dict[str, int] = {}
        try:
            self.shapes = self._read_header()
        except ValueError as error:
            raise ModelFolderError(
                f"{path}: the weights cannot be read, as if cut short or foreign: {error}"
            ) from error
        if faults := find_weight_faults(expected, self.shapes):
            raise ModelFolderError(f"{path}: {faults}")

    @property
    def fingerprint(self) -> str:
        """What tells these weights from others: the SHA-256 of the file."""
        return self._file.fingerprint

    def is_in_place(self) -> bool:
        """Return whether no other file has taken its place."""
        return self._file.is_in_place()

    def read(self) -> dict[str, NDArray[np.float32]]:
        """Return all tensors by name.

        Raises:
            ModelFolderError: The file cannot be read, or was cut meanwhile.
        """
        return {
            name: self._file.read_floats(self._starts[name], shape)
            for name, shape in self.shapes.items()
        }

    def _read_header(self) -> dict[str, tuple[int, ...]]:
        if self._file.size < 8:
            raise ValueError(f"it has {self._file.size} bytes")
        (length,) = struct.unpack("<Q", self._file.read_part(0, 8))
        if length > min(_LARGEST_HEADER_BYTES, self._file.size - 8):
            raise ValueError(f"its header has {length:,} bytes, and it {self._file.size:,}")
        header = parse_json(self._file.read_part(8, length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        header.pop("__metadata__", None)
        shapes, places = {}, []
        for name, about in header.items():
            shape, start, end = _read_entry(name, about)
            shapes[name] = shape
            self._starts[name] = 8 + length + start
            places.append((start, end))
        reached = 0
        for start, end in sorted(places):
            if start != reached:
                raise ValueError("its tensors overlap, or leave a gap")
            reached = end
        if 8 + length + reached != self._file.size:
            raise ValueError(
                f"its tensors end at byte {8 + length + reached:,}, and it has {self._file.size:,}"
            )
        return shapes


def list_shapes(
    model: ModelSettings, source_vocab_size: int, target_vocab_size: int, *, is_shared: bool
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of the network that the settings tell of, by name."""
    width, wide = model.d_model, model.dim_feedforward
    shapes: dict[str, tuple[int, ...]] = {}

    def add_linear(name: str, rows: int, columns: int, joint: str = ".") -> None:
        shapes[f"{name}{joint}weight"], shapes[f"{name}{joint}bias"] = (rows, columns), (rows,)

    def add_norms(name: str, count: int) -> None:
        for i in range(1, count + 1):
            shapes[f"{name}.norm{i}.weight"] = shapes[f"{name}.norm{i}.bias"] = (width,)

    for side, num_layers in (
        ("encoder", model.num_encoder_layers),
        ("decoder", model.num_decoder_layers),
    ):
        attentions = ("self_attn", "multihead_attn")[: 1 + (side == "decoder")]
        for i in range(num_layers):
            layer = f"transformer.{side}.layers.{i}"
            for attention in attentions:
                add_linear(f"{layer}.{attention}.in_proj", 3 * width, width, "_")
                add_linear(f"{layer}.{attention}.out_proj", width, width)
            add_linear(f"{layer}.linear1", wide, width)
            add_linear(f"{layer}.linear2", width, wide)
            add_norms(layer, len(attentions) + 1)
        shapes[f"transformer.{side}.norm.weight"] = (width,)
        shapes[f"transformer.{side}.norm.bias"] = (width,)
    shapes["target_embedding.weight"] = (_round_up(target_vocab_size), width)
    if not (is_shared and model.tie_embeddings):
        shapes["source_embedding.weight"] = (_round_up(source_vocab_size), width)
    if not model.tie_embeddings:
        add_linear("output", _round_up(target_vocab_size), width)
    if model.positions == "learned":
        for side in ("source", "target"):
            shapes[f"{side}_positions.weight"] = (model.max_positions, width)
    return shapes


def find_weight_faults(expected: Shapes, found: Shapes) -> str:
    """Return how the tensors of a file differ from those that there must be; "": they do not."""
    faults = [f"{name}: missing" for name in expected.keys() - found.keys()]
    faults += [f"{shorten(name)}: unknown" for name in found.keys() - expected.keys()]
    faults += [
        f"{name}: shape {found[name]}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != tuple(shape)
    ]
    if not faults:
        return ""
    return (
        "the weights do not fit the settings beside them, as if from another model: "
        + "; ".join(sorted(faults)[:_SHOWN])
        + (f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else "")
    )


def _read_entry(name: str, about: object) -> tuple[tuple[int, ...], int, int]:
    """Return the shape of a tensor, and where its bytes begin and end."""
    shown = shorten(name)
    if not isinstance(about, dict) or about.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown}: expected its dtype, its shape and its data_offsets")
    if about["dtype"] != "F32":
        raise ValueError(f"{shown}: of type {shorten(str(about['dtype']))}; weights are F32")
    shape, offsets = about["shape"], about["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{shown}: its shape or its place is broken")
    start, end = offsets
    if len(shape) > 8 or end - start != 4 * math.prod(shape):
        raise ValueError(f"{shown}: its shape is not that of {end - start:,} bytes")
    return tuple(shape), start, end


def _are_sizes(values: Any) -> bool:  # noqa: ANN401
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= _LARGEST_BYTES for value in values
    )


def _round_up(count: int) -> int:
    return -(-count // _ROUNDED_ROWS) * _ROUNDED_ROWS
