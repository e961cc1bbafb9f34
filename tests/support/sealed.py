"""Checkpoints that are sealed as ours are, whatever they say."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from branchgrpo.checkpoint.store import open_saved
from branchgrpo.errors import UserError

MANIFEST, STATE = "manifest.json", "state.json"


def seal(folder: Path, body: Any, **formatted: Any) -> None:
    """Write it with the digest that docs/checkpoints.md tells anyone to write."""
    body = {key: value for key, value in body.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    (folder / MANIFEST).write_text(
        json.dumps(body | {"digest": digest}, **{"indent": 1, **formatted}) + "\n"
    )


def listed(folder: Path, name: str, data: bytes | None = None) -> None:
    """Say that the file was saved as it is, or as `data`."""
    data = (folder / name).read_bytes() if data is None else data
    body = json.loads((folder / MANIFEST).read_text())
    body["files"][name] = [hashlib.sha256(data).hexdigest(), len(data)]
    seal(folder, body)


def soon(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises; fails the test when it takes longer than half a minute."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert outcome, "it waits for ever"
    found, error = outcome[0]
    if error:
        raise error
    return found


def refusal(where: str | Path) -> str:
    """The one line with which a checkpoint is refused."""
    with pytest.raises(UserError, match=r"^--resume: expected a checkpoint in ") as caught:
        soon(lambda: open_saved(where))
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600, line
    return line.partition(f"{where}: ")[2]
