"""What an ONNX file says of itself, without its network or onnxruntime."""

from __future__ import annotations

from pathlib import Path

PROPERTIES = 14
"""Field metadata_props of ModelProto: entries with a key (field 1) and a value (field 2).
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto"""


def metadata(path: Path) -> dict[str, str]:
    """Texts by name. Raises OSError, and google.protobuf's DecodeError for a file that is cut
    off."""
    return {
        key.decode(): value.decode()
        for number, entry in _fields(path.read_bytes())
        if number == PROPERTIES
        for key, value in [[text for _, text in sorted(_fields(entry))]]
    }


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    """Numbers and contents of a message's fields of the kinds that have a length."""
    from google.protobuf.empty_pb2 import Empty
    from google.protobuf.unknown_fields import UnknownFieldSet

    # to a message that declares none, all are unknown fields
    found = UnknownFieldSet(Empty.FromString(message))
    return [(one.field_number, one.data) for one in found if isinstance(one.data, bytes)]
