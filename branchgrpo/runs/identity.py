"""What a run is: what gives its tensors their meaning, what it keeps to the end, and what may
change from one driver to the next."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError, one_line
from branchgrpo.files.regular import opened, read
from branchgrpo.files.safetensors_header import header
from branchgrpo.models import places as model_places
from branchgrpo.models.base import ModelOptions
from branchgrpo.models.files import json_file

MEANING = (
    "model.name",
    "model.path",
    "model.files",
    "model.dtype",
    "model.lora_rank",
    "model.lora_alpha",
    "model.lora_targets",
)
"""What gives tensors their meaning: also a new run that begins at a checkpoint must have the
same."""
HEAD = 64
"""Bytes of each tensor that count for the digest: training moves nearly all numbers."""
MOST_JSON = 64 << 20
"""Bytes of a JSON file of a model; a tokenizer's has some 10 MB."""

Identity = dict[str, Any]
"""By dotted key; lists, not tuples, as JSON gives them back."""


def identity(config: Config) -> Identity:
    """Of the run that a config describes. Reads the model's headers."""
    found = _plain_identity(config.model_dump(mode="json", by_alias=True), config.model)
    return found | {
        "model.path": _place(config.model.path),
        "model.files": model_digest(config.model.folder()),
    }


def identity_of(dump: Mapping[str, Any], config: Config) -> Identity:
    """Of a run of which only the resolved config is known; without the digest of its model's
    files."""
    found = _plain_identity(dump, config.model)
    return found | (
        {"model.path": _place(found["model.path"])}
        if isinstance(found.get("model.path"), str)
        else {}
    )


def _plain_identity(dump: Mapping[str, Any], options: ModelOptions) -> Identity:
    model = _section(dump, "model")
    found: Identity = {
        f"model.{key}": value for key, value in model.items() if key not in options.computing
    }
    rank = model.get("lora_rank")
    if rank:
        found["model.lora_alpha"] = model.get("lora_alpha") or 2 * rank
        found["model.lora_targets"] = sorted(model.get("lora_targets") or options.attention_layers)
    else:
        for key in ("lora_alpha", "lora_targets"):
            found.pop(f"model.{key}", None)
    for section, key in (("method", "name"), ("rollout", "storage_dtype")):
        if key in _section(dump, section):
            found[f"{section}.{key}"] = _section(dump, section)[key]
    if _section(dump, "method").get("adapt_every"):  # what each split's worth was measured at
        found |= {
            "sampling.steps": _section(dump, "sampling").get("steps"),
            "number of method.splits": len(_section(dump, "method").get("splits", [])),
        }
    if "ema" in _section(dump, "learner"):
        found["learner.ema"] = "a mean" if _section(dump, "learner")["ema"] else "no mean"
    return found


def _section(dump: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = dump.get(name)
    return found if isinstance(found, Mapping) else {}


def _place(path: str) -> str:
    named = ":" in path or model_places.on_hub(path)
    return path if named else str(Path(path).expanduser().resolve())


def model_digest(folder: Path) -> str:
    """Of the parts that model_index.json names: all JSON files, and of each safetensors file its
    name, header and the first bytes of each tensor. Reads little, and tells models of equal shapes
    apart."""
    digest = hashlib.sha256()
    index = json_file("model.path", folder / "model_index.json")
    parts = [
        folder / part for part in sorted(index) if "/" not in part and (folder / part).is_dir()
    ]
    try:
        for part in parts:
            for path in sorted([*part.glob("*.json"), *part.glob("*.safetensors")]):
                digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
                for piece in (
                    _heads(path) if path.suffix == ".safetensors" else [read(path, MOST_JSON)]
                ):
                    digest.update(piece)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path: expected files that can be read in {folder}: {one_line(error)}"
        ) from error
    return digest.hexdigest()[:16]


def _heads(path: Path) -> Iterator[bytes]:
    tensors = sorted(header(path).tensors.items(), key=lambda pair: pair[1].begin)
    with opened(path) as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        for name, entry in tensors:
            file.seek(start + entry.begin)
            yield f"{name}\0{entry.dtype}\0{entry.shape}\0".encode() + file.read(
                min(HEAD, entry.end - entry.begin)
            )


def require_same(
    old: Mapping[str, Any], new: Mapping[str, Any], what: str, meaning_alone: bool = False
) -> list[str]:
    """Raise UserError, naming keys, old and new values, where `new` is not what `old` was. Returns
    lines: what could not be compared, and with `meaning_alone` what differs and may.

    what: whose tensors they are, in words. meaning_alone: a new run begins at the checkpoint, not
    the same goes on.
    """
    differing = [
        key
        for key in new
        if key in old and old[key] != new[key] and key not in ("model.path", "model.files")
    ]
    known = "model.files" in old
    if (
        (old["model.files"] != new["model.files"])
        if known
        else ("model.path" in old and old["model.path"] != new["model.path"])
    ):
        differing.insert(0, "model.path")
    refused = [key for key in differing if key in MEANING or not meaning_alone]
    if refused:
        pairs = "; ".join(f"{key} {_shown(old, key)}, got {_shown(new, key)}" for key in refused)
        rest = "" if meaning_alone else ": a run goes on only as what it was"
        raise UserError(f"--resume: {what}: expected {pairs}{rest}")
    lines = [f"{key}: {_shown(old, key)} → {_shown(new, key)}" for key in differing]
    if missing := [key for key in MEANING if key in new and key not in old]:
        lines.append(f"{what} does not say {', '.join(missing)}: not compared with what it is now")
    return lines


def _shown(known: Mapping[str, Any], key: str) -> str:
    value = known[key]
    files = (
        f" (files {known['model.files']})" if key == "model.path" and "model.files" in known else ""
    )
    return (
        ", ".join(map(str, value)) if isinstance(value, list) else str(value) or "nothing"
    ) + files


# What may change, and is told.


def saved_config(folder: Path) -> dict[str, Any] | None:
    """config.yaml of a run folder as it is; None where it is missing or cannot be read."""
    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def changes(old: Mapping[str, Any], config: Config) -> list[str]:
    """A line for each key whose value is another than in the resolved config `old`; keys that only
    one of them has are of components that were exchanged, or of another version."""
    before, now = dict(leaves(old)), dict(leaves(shown(config)))
    # sections where there were none
    now |= {
        key: [value for name, value in now.items() if _is_name(name, key)]
        for key, was in before.items()
        if was == [] and f"{key}.0.name" in now
    }
    return [
        f"{key}: {before[key]} → {value}"
        for key, value in now.items()
        if key in before and before[key] != value
    ]


def _is_name(key: str, section: str) -> bool:
    """Does it name a component of a list?"""
    return bool(re.fullmatch(re.escape(section) + r"\.\d+\.name", key))


def shown(config: Config) -> dict[str, Any]:
    """The resolved config as config.yaml has it."""
    found: dict[str, Any] = yaml.safe_load(configs.dump(config))
    return found


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a nested config under dotted keys; lists of plain values are one."""
    if isinstance(tree, Mapping):
        pairs = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(one, Mapping) for one in tree):
        pairs = [(str(index), value) for index, value in enumerate(tree)]
    else:
        yield prefix, tree
        return
    for key, value in pairs:
        yield from leaves(value, f"{prefix}.{key}" if prefix else key)


CHECKED_BY = (
    "prompts",
    "held_out",
    "rewards",
    "combine",
    "sampling",
    "run.seed",
    "evaluation.prompts",
    "evaluation.steps",
    "evaluation.height",
    "evaluation.width",
    "evaluation.rewards",
)
"""What the held-out scores before training depend on, beside what a run is."""


def checked_alike(old: Mapping[str, Any], config: Config) -> bool:
    """Do scores of the untrained model that were measured by the resolved config `old` hold for
    this one?"""

    def part(dump: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: value
            for key, value in leaves(dump)
            if any(key == name or key.startswith(name + ".") for name in CHECKED_BY)
        }

    return part(old) == part(shown(config))
