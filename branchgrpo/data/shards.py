"""A shard of encodings: what names a record in it, and how it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from branchgrpo.errors import UserError, one_line
from branchgrpo.files.whole import written_aside
from branchgrpo.types import Sample

DIGEST_BYTES = 16
DIGESTS, TOO_LONG = "digests", "too_long"
"""Arrays of a shard beside the encodings."""


def digest(shown: Sample) -> bytes:
    """DIGEST_BYTES that name a prompt, and the pictures that the encoders see with it by what is in
    them. Raises UserError for a picture that cannot be read."""
    found = hashlib.blake2b(shown.prompt.encode(), digest_size=DIGEST_BYTES)
    for picture in shown.images:
        try:
            found.update(b"\0" + hashlib.blake2b(picture.read()).digest())
        except OSError as error:
            raise UserError(
                f"prompts: expected a picture at {picture.path}, cannot read it: {one_line(error)}"
            ) from error
    return found.digest()


def write_shard(
    path: Path, shown: Sequence[Sample], arrays: dict[str, Any], too_long: Sequence[bool]
) -> None:
    """Write tensors [n, …] of what n records show; the file is there whole or not at all."""
    import torch
    from safetensors.torch import save_file

    digests = torch.from_numpy(
        np.frombuffer(b"".join(map(digest, shown)), np.uint8).reshape(-1, DIGEST_BYTES).copy()
    )
    tensors = {name: array.detach().cpu().contiguous() for name, array in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors |= {DIGESTS: digests, TOO_LONG: torch.tensor(too_long, dtype=torch.uint8)}
    with written_aside(path) as partial:
        save_file(tensors, partial)
