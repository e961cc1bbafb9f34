"""Records: what pictures and videos are drawn for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that a record comes with. It is read where it is used: workers on other machines
    need to see its path, unless its bytes travel."""

    path: str  # of its file; where it has bytes, what they are called in messages
    data: bytes = b""  # the encoded file; empty: read it from `path`

    def read(self) -> bytes:
        """The encoded file. Raises OSError where it cannot be read."""
        return self.data or Path(self.path).read_bytes()

    def open(self) -> Image:
        """The picture in RGB, upright, whatever its file says of turning it. Raises OSError for
        what is no picture."""
        from PIL import Image, ImageOps

        with Image.open(BytesIO(self.read())) as found:
            return ImageOps.exif_transpose(found).convert("RGB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A row of a prompt file: what a picture or video is drawn for, as models and rewards see
    it."""

    prompt: str
    id: str = ""  # what the row calls itself
    negative_prompt: str = ""  # what guidance leads away from; empty: the model's own
    images: tuple[Picture, ...] = ()  # pictures to edit, or a video's first frame
    metadata: Mapping[str, Any] = field(default_factory=dict)  # all else in the row; any JSON
