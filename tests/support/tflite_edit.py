"""A TFLite model under change, by the schema's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray


class TfliteEdit:
    """A model under change.

    Args:
        path: The model.
    """

    def __init__(self, path: Path) -> None:
        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
        self.graph = self.model.subgraphs[0]
        self._names = {
            number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()
        }

    def operators(self, kind: str) -> list[Any]:
        """List the operators of a kind, such as CONV_2D, in the order of the graph."""
        return [each for each in self.graph.operators if self._kind(each) == kind]

    def weights(self, place: int) -> Any:
        """Return the tensor of the weights of a convolution."""
        return self.graph.tensors[self.operators("CONV_2D")[place].inputs[1]]

    def integers(self, tensor: Any) -> NDArray[Any]:
        """Return the integers of a constant of int8, in its shape; changes change the model."""
        buffer = self.model.buffers[tensor.buffer]
        buffer.data = np.array(buffer.data, np.uint8)
        return buffer.data.view(np.int8).reshape(tensor.shape)

    def flip(self, tensor: Any, place: int, bit: int) -> None:
        """Flip a bit of a value of a constant in float32."""
        buffer = self.model.buffers[tensor.buffer]
        buffer.data = np.array(buffer.data, np.uint8)
        buffer.data.view(np.int32)[place] ^= 1 << bit

    def save(self, path: Path) -> Path:
        """Write the model."""
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())
        return path

    def _kind(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        return self._names[max(code.builtinCode, code.deprecatedBuiltinCode)]
