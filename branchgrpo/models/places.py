"""Where a model's files are: in a folder, in the package, or on the Hugging Face Hub by the name
OWNER/NAME or OWNER/NAME@REVISION."""

from __future__ import annotations

import json
import re
from pathlib import Path

from branchgrpo.errors import UserError, one_line

EMBEDDED = "embedded:"
NAMED = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?:@([\w./-]+))?")
INDEX = "model_index.json"


def folder_of(path: str) -> Path:
    """A folder of diffusers. Raises UserError where it or its model_index.json is missing."""
    if path.startswith(EMBEDDED):
        folder = Path(__file__).parents[1] / "assets" / path.removeprefix(EMBEDDED)
    else:
        folder = snapshot(path) if on_hub(path) else Path(path).expanduser()
    if not (folder / INDEX).is_file():
        raise UserError(
            f"model.path: expected a diffusers folder with {INDEX}, found none at {folder}"
        )
    return folder


def on_hub(path: str) -> bool:
    """Is it a name on the Hub? What is there as a file or folder is none."""
    return bool(NAMED.fullmatch(path)) and not Path(path).exists()


def snapshot(path: str) -> Path:
    """The folder of a model of diffusers in the local cache (HF_HOME). What is not there yet is
    downloaded, the parts that its model_index.json names alone; not with HF_HUB_OFFLINE=1. Raises
    UserError where it cannot be had."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    found = NAMED.fullmatch(path)
    assert found  # see on_hub
    name, revision = found[1], found[2]
    try:
        # whole, or the parts that were asked for: check_pipeline sees to it
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError) as missing:  # the latter: another owner's form of a name
        reason: Exception = missing
    if not HF_HUB_OFFLINE:
        try:
            index = Path(hf_hub_download(name, INDEX, revision=revision))
            parts = json.loads(index.read_text(encoding="utf-8"))
            wanted = [INDEX, *(f"{part}/*" for part, of in parts.items() if isinstance(of, list))]
            return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        # whatever requests, the Hub and its files come to: a name that is wrong, no network, no
        # permission
        except Exception as error:
            reason = error
    raise UserError(
        f"model.path: expected a folder, or a model of the Hub in the cache {HF_HUB_CACHE}, found "
        f"neither at {path}: {one_line(reason)}"
    ) from reason
