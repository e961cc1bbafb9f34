"""Pictures of records, as models take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from branchgrpo.errors import UserError, one_line
from branchgrpo.types import Picture

if TYPE_CHECKING:
    from PIL.Image import Image


def opened(picture: Picture) -> Image:
    """A picture in RGB. Raises UserError where it cannot be read."""
    try:
        return picture.open()
    except (OSError, ValueError) as error:
        raise UserError(
            f"prompts: expected a picture at {picture.path}, cannot read it: {one_line(error)}"
        ) from error


def opening(name: str, size: str) -> str:
    """Python of a picture in a file, resized as models see it. name, size: Python of a path, and of
    width and height."""
    return f'Image.open({name}).convert("RGB").resize({size}, Image.Resampling.LANCZOS)'
