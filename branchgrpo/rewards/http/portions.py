"""What of a batch each request of a remote reward takes."""

from __future__ import annotations

from collections.abc import Sequence

from branchgrpo.errors import UserError, one_line
from branchgrpo.rewards.http import protocol, records
from branchgrpo.types import U8, Sample


def portions(
    pixels: U8, samples: Sequence[Sample], *, limit: int, most: int, url: str
) -> list[slice]:
    """Rows of each request: at most `most`, as many as fit into `limit` bytes. Raises UserError for
    a picture and its record that don't, and for pictures of records that cannot be read."""
    found, first = list[slice](), 0
    room = limit - protocol.OVERHEAD
    left, sent = room, set[int]()
    sizes = {id(sample): _size(sample) for sample in samples}
    for row, sample in enumerate(samples):
        record, picture = sizes[id(sample)], protocol.row_bytes(pixels[row])
        if picture + record > room:
            raise UserError(
                "rewards.remote.max_mb: expected a picture and its record to fit the request "
                f"limit of {url}, {limit} bytes, got {picture + record}"
            )
        size = picture + (0 if id(sample) in sent else record)
        if size > left or row - first == most:
            found.append(slice(first, row))
            first, left, sent, size = row, room, set(), picture + record
        left -= size
        sent.add(id(sample))
    return [*found, slice(first, len(samples))]


def _size(sample: Sample) -> int:
    try:
        return records.sample_bytes(sample)
    except OSError as error:
        raise UserError(
            f"prompts: expected pictures that reward workers can read, got {one_line(error)}"
        ) from error
