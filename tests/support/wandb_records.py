"""What W&B's offline mode kept of a run: records of its file, in the form of a log of LevelDB."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # bytes; a record's head: checksum 4, length 2, kind 1
WHOLE, FIRST, MIDDLE, LAST = range(1, 5)


def records(path: Path) -> Iterator[Any]:
    """Whole records of a .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        if kind not in (WHOLE, FIRST, MIDDLE, LAST):
            return
        part = data[place + HEADER : place + HEADER + length]
        if len(part) < length:
            return
        parts = part if kind in (WHOLE, FIRST) else parts + part
        if kind in (WHOLE, LAST):
            yield Record.FromString(parts)
        place += HEADER + length


def nested(items: Any) -> dict[str, Any]:
    """Values of a row by key, in mappings where keys are nested."""
    found: dict[str, Any] = {}
    for item in items:
        *above, last = item.nested_key
        place = found
        for key in above:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def kept(folder: Path, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """History (a list of {key: value}), config, defined metrics and the newest system figures of
    the run under FOLDER/wandb, once they are `enough`: W&B's own process writes them."""
    deadline = time.monotonic() + 30
    while True:
        found: dict[str, Any] = {"history": [], "config": {}, "metrics": {}, "system": {}}
        for path in (folder / "wandb").glob("offline-run-*/*.wandb"):
            for record in records(path):
                kind = record.WhichOneof("record_type")
                if kind == "history":
                    found["history"].append(nested(record.history.item))
                elif kind == "stats":
                    items = record.stats.item
                    found["system"] |= {one.key: json.loads(one.value_json) for one in items}
                elif kind == "run":
                    updates = record.run.config.update
                    found["config"] |= {one.key: json.loads(one.value_json) for one in updates}
                elif kind == "metric":
                    name = record.metric.name or record.metric.glob_name
                    found["metrics"][name] = record.metric
        if enough(found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
