"""What `branchgrpo doctor` looks at without Ray: one machine, the files of the model and of
rewards."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from branchgrpo.config import secrets
from branchgrpo.config.schema import Config
from branchgrpo.data import check as prompt_check
from branchgrpo.data import prompts
from branchgrpo.errors import UserError
from branchgrpo.files.safetensors_header import header

PACKAGES = ("ray", "torch", "diffusers", "transformers")
CODE = ("branchgrpo", "actors", "cluster")
"""Our packages, which are compared by their text: a version says nothing while one works on
them."""
SHARED_MEMORY = "/dev/shm"


def machine(files: Sequence[str], cuda: bool) -> dict[str, Any]:
    """Facts of the machine it runs on, as plain values. Runs where branchgrpo may be missing.

    files: which of them are there. cuda: ask torch for GPUs even where no driver shows, which costs
    its import.
    """
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }
    found["code"] = {name: code(name) for name in CODE}
    # whole, free
    found["shm"] = (
        list(shutil.disk_usage(SHARED_MEMORY)[:3:2]) if os.path.isdir(SHARED_MEMORY) else None
    )
    found["files"] = {file: Path(file).expanduser().exists() for file in files}
    found["cuda"] = None
    if cuda or Path("/dev/nvidiactl").exists():
        import torch

        found["cuda"] = [
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        ]
    return found


def version(package: str) -> str:
    """Of an installed package; "none" where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def code(package: str) -> str:
    """A digest of the package's Python files; "none" where it cannot be imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return "none"
    root, digest = Path(next(iter(spec.submodule_search_locations))), hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:10]


def files(config: Config) -> list[str]:
    """What every node must have: those of a model that is not shipped with the package, and of
    rewards."""
    parts = (config.model, *config.all_rewards)
    return [path for part in parts for path in part.needed_files()]


def folders(config: Config) -> dict[str, str]:
    """What driver and workers must share, by config key, as the driver sees it: absolute paths, or
    URLs."""
    wanted = {"run.folder": config.run.folder, "checkpoint.folder": config.checkpoint.folder}
    wanted |= config.model.shared_folders()
    return {
        key: folder if "://" in folder else os.path.abspath(Path(folder).expanduser())
        for key, folder in wanted.items()
        if folder
    }


def own(config: Config) -> dict[str, Callable[[], str]]:
    """Checks on the driver's machine, by name: each returns a line, or raises UserError."""
    rewards = {
        f"{config.reward_key(index)} ({reward.title})": partial(
            _reward, reward, config.reward_key(index)
        )
        for index, reward in enumerate(config.all_rewards)
    }
    return {"model": partial(_model, config), "prompts": partial(_prompts, config), **rewards}


def _model(config: Config) -> str:
    config.model.check()
    config.evaluated.check_size("evaluation")
    return f"{config.model.path}: all files are there"


def _prompts(config: Config) -> str:
    prompt_check.check(config)
    train, held_out = prompts.lists(config)
    return (
        f"{len(train)} to train on ({config.prompts}), {len(held_out)} held out ({config.held_out})"
    )


def _reward(reward: Any, key: str) -> str:
    reward.check()
    secrets.given(reward.runtime_env, f"{key}.runtime_env")
    return "what it needs is there"


def trained(config: Config) -> int:
    """Numbers that are trained, read from the headers of the denoiser's files; 0 = not known:
    adapters, or files that are not whole."""
    try:
        config.model.check()
    except UserError:  # `own` tells
        return 0
    if config.model.adapter_rank:
        return 0
    files = (
        path
        for part in config.model.trained_denoisers
        for path in (config.model.folder() / part).glob("*.safetensors")
    )
    return sum(entry.numbers for path in files for entry in header(path).tensors.values())


def published(config: Config) -> int:
    """Bytes of one version of the weights, as they go to rollout workers; 0 = not known."""
    return trained(config) * (2 if config.model.dtype == "bfloat16" else 4)
