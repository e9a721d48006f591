"""A graph of ONNX operators, built one after another and written to a file."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
Value = str | NDArray[Any]
"""An input of an operator: the name of an output, of an input or of a parameter, or a constant."""

_OPSET = 20  # the first with Gelu
_IR_VERSION = 9  # that which came with it, in ONNX 1.15
_LARGEST_FILE_BYTES = 2_000_000_000  # a protobuf ends at 2 GiB


class Graph:
    """Operators, and the parameters and constants that they take."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._tensors: dict[str, NDArray[Any]] = {}

    def add_input(self, name: str, kind: int, shape: Sequence[str | int]) -> str:
        """Return `name`, from now on an input; a length that may differ is a word in `shape`."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def add_output(self, name: str, kind: int, shape: Sequence[str | int]) -> None:
        """Make the value `name` an output."""
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def add_parameter(self, name: str, array: NDArray[Any]) -> str:
        """Return `name`, from now on `array`; a name that is there already keeps what it has."""
        self._tensors.setdefault(name, np.ascontiguousarray(array))
        return name

    def apply(
        self,
        operator: str,
        inputs: Sequence[Value],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str = "",
    ) -> str:
        """Return the one output of `operator`, called `name` if one is given."""
        [output] = self.apply_many(operator, inputs, [name], attributes)
        return output

    def apply_many(
        self,
        operator: str,
        inputs: Sequence[Value],
        names: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Return the outputs of `operator`, called by `names`; where one is "", by its place."""
        place = len(self._nodes)
        outputs = [name or f"{operator}_{place}_{i}" for i, name in enumerate(names)]
        taken = [self._name_value(value) for value in inputs]
        self._nodes.append(helper.make_node(operator, taken, outputs, **(attributes or {})))
        return outputs

    def write(self, path: Path) -> None:
        """Write the graph to `path`; parameters beyond 2 GB to a file `.data` beside it."""
        graph = helper.make_graph(
            self._nodes,
            self._name,
            self._inputs,
            self._outputs,
            [numpy_helper.from_array(array, name) for name, array in self._tensors.items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="dragoman",
            producer_version=version("dragoman"),
        )
        size = sum(array.nbytes for array in self._tensors.values())
        onnx.save_model(
            model,
            path,
            save_as_external_data=size > _LARGEST_FILE_BYTES,
            location=f"{path.name}.data",
        )

    def describe(self) -> dict[str, dict[str, str]]:
        """Return the inputs and the outputs by name, each as "float32 (rows, 4, source, 64)"."""
        return {
            "inputs": {value.name: _describe(value) for value in self._inputs},
            "outputs": {value.name: _describe(value) for value in self._outputs},
        }

    def _name_value(self, value: Value) -> str:
        if isinstance(value, str):
            return value
        # By content: the same constant is wanted by every layer.
        digits = "_".join(map(str, value.ravel().tolist()))
        shape = "x".join(map(str, value.shape))
        return self.add_parameter(f"constant_{value.dtype}_{shape}_{digits}", value)


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    sizes = [size.dim_param or str(size.dim_value) for size in tensor.shape.dim]
    return f"{dtype} ({', '.join(sizes)})"
