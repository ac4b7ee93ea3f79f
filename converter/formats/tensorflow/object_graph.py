"""The object graph of a TensorFlow 2 checkpoint: the names of its variables.

tf.train.Checkpoint and SavedModels of TensorFlow 2 key a variable by its path in the object that was saved,
such as `model/layer/kernel/.ATTRIBUTES/VARIABLE_VALUE`. The variables' own names stand in a string tensor.

Source: TensorFlow's core/protobuf/trackable_object_graph.proto.
"""

from __future__ import annotations

from converter.formats.tensorflow.find_proto_fields import BYTES, ProtoScanner

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""Key of the string tensor."""

MAX_BYTES = 64 << 20
"""Limit on its size; that of a model of 600 layers has 0.2 MB."""

_MAX_FIELDS = 500_000
# Numbers of fields.
_OBJECT, _ATTRIBUTE = 1, 2
_FULL_NAME, _CHECKPOINT_KEY = 2, 3


def variable_names(content: bytes) -> dict[str, str]:
    """Read the names of the variables from a serialised TrackableObjectGraph.

    Returns:
        Key in the checkpoint to the variable's name, for every variable that has one.

    Raises:
        ProtoError: The bytes are not an object graph.
    """
    scanner = ProtoScanner(content, _MAX_FIELDS)
    names = {}
    for node in scanner.fields(0, len(content)):
        if node.number != _OBJECT or node.wire_type != BYTES:
            continue
        for attribute in scanner.fields(node.start, node.stop):
            if attribute.number == _ATTRIBUTE and attribute.wire_type == BYTES:
                text = {
                    field.number: scanner.text(field)
                    for field in scanner.fields(attribute.start, attribute.stop)
                    if field.wire_type == BYTES
                }
                if text.get(_FULL_NAME) and text.get(_CHECKPOINT_KEY):
                    names[text[_CHECKPOINT_KEY]] = text[_FULL_NAME]
    return names
