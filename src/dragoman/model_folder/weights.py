"""The weights of a model folder, read by safetensors, which checks the file."""

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from dragoman.errors import ModelFolderError


class StoredWeights(Mapping[str, NDArray[np.float32]]):
    """The tensors of a safetensors file by name, each read when it is asked for.

    The file is mapped into memory: the tensors stay the same if another file replaces it later.

    Raises:
        ModelFolderError: The file is missing or invalid, or a tensor is not float32.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = cast(Any, safe_open(path, framework="np"))  # untyped
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._status = os.fstat(file.fileno())
        except (OSError, SafetensorError) as error:
            raise ModelFolderError(
                f"{path}: the weights cannot be read: truncated, or not a safetensors file: {error}"
            ) from error
        self._names = sorted(self._file.keys())
        for name in self._names:
            if (dtype := self._file.get_slice(name).get_dtype()) != "F32":
                raise ModelFolderError(f"{path}: {name} is of type {dtype}; weights are F32")

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self:
            raise KeyError(name)
        tensor: NDArray[np.float32] = self._file.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, in hexadecimal."""
        return hashlib.sha256(self._bytes).hexdigest()

    def is_in_place(self) -> bool:
        """Return whether no other file has replaced this one."""
        try:
            return os.path.samestat(self._status, self.path.stat())
        except OSError:
            return False
