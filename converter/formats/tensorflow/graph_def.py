"""Scanning a GraphDef (.pb): its operations, its constants, and the variables that constants hold.

Sources: TensorFlow's core/framework/graph.proto, function.proto, node_def.proto, attr_value.proto and
tensor.proto.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from converter.formats.tensorflow.find_proto_fields import BYTES, Field, ProtoError, ProtoScanner

SLIM_LEAVES = frozenset({"weights", "biases", "beta", "gamma", "moving_mean", "moving_variance"})
"""The last names of variables in tf-slim."""

MOST_BYTES = 2**31 - 1  # protobuf's own limit for a message
MAX_FIELDS = 250_000  # of a graph; a published frozen graph of 5,893 nodes has 40,000
_MOST_LISTED_BYTES = 2**22  # of values outside tensor_content; TensorFlow lists only very few
# Numbers of fields.
_NODE, _LIBRARY = 1, 2
_FUNCTION, _FUNCTION_NODE = 1, 3
_NAME, _OP, _INPUT, _ATTRIBUTE = 1, 2, 3, 5
_KEY, _VALUE = 1, 2
_TENSOR = 8
_TENSOR_CONTENT = 4
_QUANTISED = re.compile(r"Dequantize|Quantized\w+")
_FAKE_QUANTISED = re.compile(r"FakeQuantWithMinMax\w+|QuantizeAndDequantize\w*")
_AVERAGE = "/ExponentialMovingAverage"  # tf.train.ExponentialMovingAverage
# A transform that folds constants leaves the value under the name of the node that read it, with the suffix
# of core/common_runtime/constant_folding.cc.
_READ_OR_FOLDED = re.compile(r"(/read|/Read/ReadVariableOp)?(/_\d+__cf__\d+)?$")


@dataclass(frozen=True, slots=True)
class Constant:
    """The TensorProto of a Const: the place of its tensor_content, and the bytes of all its other fields."""

    content: Field | None
    fields: bytes

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return len(self.fields) + (self.content.stop - self.content.start if self.content else 0)


class NameTwiceError(Exception):
    """A name stands for two constants."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class GraphNodes:
    """The nodes of a graph and of its functions, as far as they matter to a reader of weights.

    Attributes:
        ops: Number of nodes of each operation.
        constants: Name of every Const to its tensor.
        read: Names that an Identity reads as the value of a variable.
    """

    def __init__(self) -> None:
        self.ops: Counter[str] = Counter()
        self.constants: dict[str, Constant] = {}
        self.read: set[str] = set()

    @property
    def quantised(self) -> dict[str, int]:
        """Number of nodes of each operation on weights that are stored as integers."""
        return {op: count for op, count in self.ops.items() if _QUANTISED.fullmatch(op)}

    @property
    def fake_quantised(self) -> dict[str, int]:
        """Number of nodes of each operation that rounds floats to few values, as integers would."""
        return {op: count for op, count in self.ops.items() if _FAKE_QUANTISED.fullmatch(op)}

    @property
    def has_folded_batch_norms(self) -> bool:
        """Return whether most convolutions have no BatchNorm: a transform has folded it into them."""
        variances = sum(name.endswith("/moving_variance") for name in self.constants)
        return self.ops["Conv2D"] > 2 * variances

    def scan(self, scanner: ProtoScanner, start: int, stop: int) -> None:
        """Add the nodes of a GraphDef. After an error the nodes before it are there.

        Raises:
            ProtoError: The bytes are not a GraphDef.
            NameTwiceError: Two constants of one name differ.
        """
        for field in scanner.fields(start, stop):
            if field.number == _NODE:
                self._add(scanner, field, in_function=False)
            elif field.number == _LIBRARY:
                for function in _messages(scanner, field, _FUNCTION):
                    for node in _messages(scanner, function, _FUNCTION_NODE):
                        self._add(scanner, node, in_function=True)

    def _add(self, scanner: ProtoScanner, field: Field, *, in_function: bool) -> None:
        node = _Node(scanner, field)
        if node.op == "Identity" and node.inputs:
            source = node.inputs[0].removesuffix(":0").removesuffix(":output")
            if node.name in (f"{source}/read", f"{source}/Read/ReadVariableOp"):
                self.read.add(source)
        elif node.op == "Const":
            constant = _find_constant(scanner, node)
            known = self.constants.setdefault(node.name, constant)
            # Functions call their plain constants alike, and hold a variable once for each that reads it.
            if known is not constant and not (
                in_function and (variable_name(node.name) is None or _same(scanner, known, constant))
            ):
                raise NameTwiceError(node.name)
        self.ops[node.op] += 1

    def frozen_variables(self) -> dict[str, list[str]]:
        """Choose the constants that are variables: the name of each variable to those of its constants.

        A variable has several if a transform has folded nodes that read it. Its own, if there, is the first.
        """
        frozen: dict[str, list[str]] = {}
        for name in self.constants:
            variable = name if name in self.read else variable_name(name)
            if variable is not None:
                frozen.setdefault(variable, []).append(name)
        return {variable: sorted(names, key=len) for variable, names in frozen.items()}


def variable_name(constant: str) -> str | None:
    """Return the variable that a constant holds, by tf-slim's names; None for any other constant."""
    name = _READ_OR_FOLDED.sub("", constant)
    return name if name.removesuffix(_AVERAGE).rpartition("/")[2] in SLIM_LEAVES else None


def _messages(scanner: ProtoScanner, message: Field, number: int) -> Iterator[Field]:
    """Yield the fields of one number of a message."""
    if message.wire_type != BYTES:
        raise ProtoError(f"byte {message.begin}: a function is not a message")
    return (field for field in scanner.fields(message.start, message.stop) if field.number == number)


def _same(scanner: ProtoScanner, one: Constant, other: Constant) -> bool:
    """Compare two constants bit for bit."""
    if one.fields != other.fields or (one.content is None) != (other.content is None):
        return False
    if one.content is None or other.content is None:
        return True
    data = memoryview(scanner.data)
    return data[one.content.start : one.content.stop] == data[other.content.start : other.content.stop]


class _Node:
    """The needed parts of a NodeDef: name, op, inputs, and the places of its attributes."""

    def __init__(self, scanner: ProtoScanner, message: Field) -> None:
        if message.wire_type != BYTES:
            raise ProtoError(f"byte {message.begin}: a node is not a message")
        self.name = self.op = ""
        self.inputs: list[str] = []
        self.attributes: list[Field] = []
        for field in scanner.fields(message.start, message.stop):
            if field.wire_type != BYTES:
                continue
            if field.number == _NAME:
                self.name = scanner.text(field)
            elif field.number == _OP:
                self.op = scanner.text(field)
            elif field.number == _INPUT:
                self.inputs.append(scanner.text(field))
            elif field.number == _ATTRIBUTE:
                self.attributes.append(field)


def _find_constant(scanner: ProtoScanner, node: _Node) -> Constant:
    """Find the tensor in the attribute `value` of a Const."""
    values = []
    for attribute in node.attributes:
        entry = {field.number: field for field in scanner.fields(attribute.start, attribute.stop)}
        if _KEY in entry and _VALUE in entry and scanner.text(entry[_KEY]) == "value":
            values.append(entry[_VALUE])
    if len(values) != 1:
        raise ProtoError(f"the constant {node.name[:200]!r} has {len(values)} values")
    kinds = list(scanner.fields(values[0].start, values[0].stop))
    if [kind.number for kind in kinds] != [_TENSOR] or kinds[0].wire_type != BYTES:
        raise ProtoError(f"byte {values[0].begin}: the value of a constant is not a tensor")
    contents, rest = [], bytearray()
    for field in scanner.fields(kinds[0].start, kinds[0].stop):
        if field.number == _TENSOR_CONTENT and field.wire_type == BYTES:
            contents.append(field)
        else:
            rest += scanner.data[field.begin : field.stop]
    if len(contents) > 1 or len(rest) > _MOST_LISTED_BYTES:
        raise ProtoError(f"byte {kinds[0].begin}: a tensor is larger than it should be")
    content = contents[0] if contents and contents[0].stop > contents[0].start else None
    return Constant(content, bytes(rest))
