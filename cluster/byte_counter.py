"""Counting the bytes that pass through the driver."""

from __future__ import annotations

import io
import pickle
from typing import Any

from ray import ObjectRef, cloudpickle

REFERENCE_BYTES = 28


class DriverByteCounter:
    """Counts the bytes that pass through the driver: messages by their pickled size, a reference as
    its id."""

    def __init__(self) -> None:
        self.bytes = 0

    def count(self, message: Any) -> None:
        """Add a message sent or received."""
        buffer = io.BytesIO()
        sizer = _Sizer(buffer)
        sizer.dump(message)
        self.bytes += buffer.tell() + sizer.references * REFERENCE_BYTES

    def take(self) -> int:
        """The count since the last call."""
        taken, self.bytes = self.bytes, 0
        return taken


class _Sizer(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Pickles without serialising references, which Ray would otherwise keep alive for ever."""

    def __init__(self, buffer: io.BytesIO):
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self.references = 0

    def persistent_id(self, value: Any) -> str | None:
        if isinstance(value, ObjectRef):
            self.references += 1
            return ""
        return None
