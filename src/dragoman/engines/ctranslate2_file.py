"""Compares a model.bin with what dragoman writes, before CTranslate2 is given it.

CTranslate2 is C++, and believes the file: a table with fewer rows than there are tokens, or a vector
shorter than the width, would make it read beyond its memory. So every part must be one that an
export has, of the shape that follows from the others, within the file, and nothing else may be there.

The file is: version of the format, name and revision of the layout, number of variables; of each its
name, rank, sizes, type, number of bytes, bytes; number of aliases, of each its name and the variable
that it stands for. Numbers are little-endian, a text has its length before it and a zero behind it.
Source: CTranslate2 4.8, specs/model_spec.py, `_serialize`.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from dragoman.errors import ModelFolderError, shorten
from dragoman.model_folder.folder_files import FolderFile

_FORMAT, _LAYOUT, _REVISION = 6, "TransformerSpec", 7
_WINDOW_BYTES = 1 << 16
_TYPES = {0: ("float32", 4), 1: ("int8", 1), 2: ("int16", 2), 4: ("float16", 2), 5: ("bfloat16", 2)}
_FLOATS = ("float32", "float16", "bfloat16")
_RELU, _GELU = 0, 3
# What a number may be; it is then as we write it, whatever else CTranslate2 could do.
_NUMBERS = {
    "decoder/activation": (_RELU, _GELU),
    "decoder/alibi": (0,),
    "decoder/alibi_use_positive_positions": (0,),
    "decoder/alignment_heads": (0,),
    "decoder/alignment_layer": (-1,),
    "decoder/pre_norm": (0, 1),
    "decoder/scale_alibi": (0,),
    "decoder/scale_embeddings": (1,),
    "decoder/start_from_zero_embedding": (0,),
    "encoder/activation": (_RELU, _GELU),
    "encoder/embeddings_merge": (0,),
    "encoder/multi_query_attention": (0,),
    "encoder/pre_norm": (0, 1),
    "encoder/scale_embeddings": (1,),
}
_HEADS = ("encoder/num_heads", "decoder/num_heads")
_SCALE = "_scale"

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Variable:
    shape: Shape
    kind: str
    number: int | None  # of one without dimensions


def check_model_file(
    file: FolderFile, *, num_sources: int, num_targets: int, num_positions: int
) -> None:
    """Refuse a model.bin that is not one of dragoman's for so many tokens and positions.

    Reads the names and the sizes, not the weights.

    Raises:
        ModelFolderError: Says what is wrong with it.
    """
    try:
        variables = _read_variables(file)
        shapes = _find_shapes(variables, num_sources, num_targets, num_positions)
        _compare(variables, shapes)
    except (ValueError, KeyError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ModelFolderError(
            f"{file.path}: not a model that dragoman exported: {reason}"
        ) from error


class _Reader:
    """Reads numbers and texts one behind the other, a window at a time, and skips what is large."""

    def __init__(self, file: FolderFile) -> None:
        self._file, self._window, self._start = file, b"", 0
        self.place = 0

    def take(self, count: int) -> bytes:
        begin = self.place - self._start
        if not 0 <= begin <= begin + count <= len(self._window):
            if self.place + count > self._file.size:
                raise ValueError("it is cut short")
            room = min(max(count, _WINDOW_BYTES), self._file.size - self.place)
            self._window, self._start = self._file.read_part(self.place, room), self.place
            begin = 0
        self.place += count
        return self._window[begin : begin + count]

    def number(self, kind: str) -> int:
        (value,) = struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))
        assert isinstance(value, int)
        return value

    def text(self) -> str:
        content = self.take(self.number("H"))
        if not content.endswith(b"\0") or b"\0" in content[:-1]:
            raise ValueError("a name has no end")
        return content[:-1].decode("utf-8")

    def skip(self, count: int) -> None:
        if self.place + count > self._file.size:
            raise ValueError("it is cut short")
        self.place += count


def _read_variables(file: FolderFile) -> dict[str, _Variable]:
    """Return what there is by name, aliases too."""
    reader = _Reader(file)
    found_format = reader.number("I")
    if found_format != _FORMAT:
        raise ValueError(f"its format is {found_format}, and CTranslate2 4.8 writes {_FORMAT}")
    layout, revision = reader.text(), reader.number("I")
    if (layout, revision) != (_LAYOUT, _REVISION):
        raise ValueError(f"its layout is {shorten(layout)} {revision}, not {_LAYOUT} {_REVISION}")
    variables: dict[str, _Variable] = {}
    for _ in range(reader.number("I")):
        name = _take_new_name(reader, variables)
        variables[name] = _read_variable(reader, name)
    own = dict(variables)
    for _ in range(reader.number("I")):
        alias, name = _take_new_name(reader, variables), reader.text()
        if name not in own:
            raise ValueError(f"{shorten(alias)} stands for {shorten(name)}, which is not there")
        variables[alias] = own[name]
        if name + _SCALE in own:  # CTranslate2 does so itself
            variables[alias + _SCALE] = own[name + _SCALE]
    if reader.place != file.size:
        raise ValueError(f"{file.size - reader.place:,} bytes lie behind its end")
    return variables


def _take_new_name(reader: _Reader, variables: Mapping[str, _Variable]) -> str:
    name = reader.text()
    if name in variables:
        raise ValueError(f"{shorten(name)} is there twice")
    return name


def _read_variable(reader: _Reader, name: str) -> _Variable:
    rank = reader.number("B")
    if rank > 2:
        raise ValueError(f"{shorten(name)} has {rank} dimensions")
    shape = tuple(reader.number("I") for _ in range(rank))
    number, num_bytes = reader.number("B"), reader.number("I")
    if number not in _TYPES:
        raise ValueError(f"{shorten(name)} is of a type {number}, that no export has")
    kind, width = _TYPES[number]
    if num_bytes != width * math.prod(shape):
        raise ValueError(f"{shorten(name)} has {num_bytes:,} bytes for a shape {shape} of {kind}")
    if shape:
        reader.skip(num_bytes)
        return _Variable(shape=shape, kind=kind, number=None)
    if not kind.startswith("int"):
        raise ValueError(f"{shorten(name)} is a number of type {kind}")
    value = int.from_bytes(reader.take(num_bytes), "little", signed=True)
    return _Variable(shape=(), kind=kind, number=value)


def _find_shapes(
    variables: Mapping[str, _Variable], num_sources: int, num_targets: int, num_positions: int
) -> dict[str, Shape]:
    """Return the shape that each tensor must have, by those that give the sizes."""
    [width] = variables["decoder/layer_norm/gamma"].shape
    shapes: dict[str, Shape] = {
        "encoder/embeddings_0/weight": (num_sources, width),
        "decoder/embeddings/weight": (num_targets, width),
        "decoder/projection/weight": (num_targets, width),
        "decoder/projection/bias": (num_targets,),
    }

    def add_linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}/weight"], shapes[f"{name}/bias"] = (rows, columns), (rows,)

    def add_norm(name: str) -> None:
        shapes[f"{name}/gamma"] = shapes[f"{name}/beta"] = (width,)

    for side in ("encoder", "decoder"):
        shapes[f"{side}/position_encodings/encodings"] = (num_positions, width)
        add_norm(f"{side}/layer_norm")
        wide = variables[f"{side}/layer_0/ffn/linear_0/bias"].shape[0]
        number = 0
        while f"{side}/layer_{number}/ffn/linear_0/bias" in variables:
            layer = f"{side}/layer_{number}"
            add_linear(f"{layer}/self_attention/linear_0", 3 * width, width)
            add_linear(f"{layer}/self_attention/linear_1", width, width)
            add_norm(f"{layer}/self_attention/layer_norm")
            if side == "decoder":
                add_linear(f"{layer}/attention/linear_0", width, width)
                add_linear(f"{layer}/attention/linear_1", 2 * width, width)
                add_linear(f"{layer}/attention/linear_2", width, width)
                add_norm(f"{layer}/attention/layer_norm")
            add_linear(f"{layer}/ffn/linear_0", wide, width)
            add_linear(f"{layer}/ffn/linear_1", width, wide)
            add_norm(f"{layer}/ffn/layer_norm")
            number += 1
    return shapes


def _compare(variables: Mapping[str, _Variable], shapes: Mapping[str, Shape]) -> None:
    """Refuse variables that are missing, unknown, of another shape or another kind.

    Raises:
        ValueError: Says which one.
    """
    scales = {
        f"{name}{_SCALE}" for name in shapes if name in variables and variables[name].kind == "int8"
    }
    kinds: dict[bool, set[str]] = {True: set(), False: set()}
    for name, shape in shapes.items():
        found = variables[name]
        if found.shape != shape:
            raise ValueError(f"{name} has the shape {found.shape}, expected {shape}")
        may_be_int8 = name.endswith("/weight")
        if found.kind not in (*_FLOATS, *(["int8"] if may_be_int8 else [])):
            raise ValueError(f"{name} is of type {found.kind}")
        kinds[may_be_int8].add(found.kind)
    if any(len(found_kinds) > 1 for found_kinds in kinds.values()):
        raise ValueError("its weights are of different types")
    for name in scales:
        if variables[name].shape != shapes[name.removesuffix(_SCALE)][:1]:
            raise ValueError(f"{name} has the shape {variables[name].shape}")
        if variables[name].kind != "float32":
            raise ValueError(f"{name} is of type {variables[name].kind}")
    [width] = variables["decoder/layer_norm/gamma"].shape
    for name in _HEADS:
        heads = variables[name].number
        if heads is None or heads < 1 or width % heads:
            raise ValueError(f"{name} is {heads}, for a width of {width}")
    for name in variables.keys() - shapes.keys() - scales - set(_HEADS):
        if name not in _NUMBERS:
            raise ValueError(f"{shorten(name)} is no part of an export")
        if variables[name].number not in _NUMBERS[name]:
            raise ValueError(f"{name} is {variables[name].number}")
