"""The schedules that diffusers' schedulers make of their config: in numpy, so that planning needs
no torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from branchgrpo.errors import UserError
from branchgrpo.models.files import json_file

EULER, UNIPC = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"

TRAIN_TIMESTEPS = 1000
"""The denoisers take σ on this scale."""

_OTHER_LEVELS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)


def read(path: Path, known: tuple[str, ...], shift: float | None) -> dict[str, Any]:
    """A scheduler's config; with a number, that static shift in place of its own. Raises UserError
    for one that is not known."""
    found = json_file("model.path", path)
    check(found, path, known)
    if shift is None:
        return found
    return found | {"use_dynamic_shifting": False, shift_key(found): shift}


def shift_key(config: dict[str, Any]) -> str:
    """What the static shift is called in this scheduler's config."""
    return "flow_shift" if config["_class_name"] == UNIPC else "shift"


def check(config: dict[str, Any], path: Path, known: tuple[str, ...]) -> None:
    """Raise UserError for a scheduler whose noise levels are not among those worked out here."""
    name = config.get("_class_name")
    if name not in known:
        raise UserError(f"model.path: expected {' or '.join(known)} in {path}, got {name}")
    strange = [key for key in _OTHER_LEVELS if config.get(key)]
    if name == UNIPC and not config.get("use_flow_sigmas"):
        strange.append("use_flow_sigmas: false")
    if config.get("num_train_timesteps", TRAIN_TIMESTEPS) != TRAIN_TIMESTEPS:
        strange.append(f"num_train_timesteps: {config['num_train_timesteps']}")
    if strange:
        raise UserError(
            f"model.path: expected a scheduler of plain flow matching in {path}, got "
            f"{', '.join(strange)}"
        )


def timesteps(config: dict[str, Any], levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """[T] that the scheduler gives the denoiser at noise levels: UniPC's begin below σ = 1 and are
    cut to integers."""
    found = np.float32(TRAIN_TIMESTEPS) * levels
    if config["_class_name"] == UNIPC:
        found = np.floor(np.minimum(found, np.float32(TRAIN_TIMESTEPS - 1)))
    return found


def shift(config: dict[str, Any], tokens: int) -> float:
    """The factor of the shift: static, or, where the config says so, that of a picture of so many
    tokens.

    tokens: of the picture alone; 0 where the pipeline tells its scheduler no size. Raises UserError
    then.
    """
    if not config.get("use_dynamic_shifting"):
        return float(config.get(shift_key(config), 1.0))
    if not tokens:
        raise UserError(
            "sampling.shift: expected a number, since the model's scheduler has "
            "use_dynamic_shifting and its pipeline tells it no size"
        )
    low, high = (
        config.get(key, default) for key, default in (("base_shift", 0.5), ("max_shift", 1.15))
    )
    first, last = (
        config.get(key, default)
        for key, default in (("base_image_seq_len", 256), ("max_image_seq_len", 4096))
    )
    mu = low + (high - low) / (last - first) * (tokens - first)
    return float(mu) if config.get("time_shift_type") == "linear" else math.exp(mu)


def even_times(steps: int) -> NDArray[np.float64]:
    """[T] what pipelines give their scheduler that choose the times themselves: linspace(1, 1/T,
    T)."""
    return np.linspace(1.0, 0.0, steps + 1)[:-1]


def own_times(config: dict[str, Any], steps: int) -> NDArray[np.float64]:
    """[T] what `set_timesteps(T)` begins with.

    The Euler scheduler spaces them evenly between its extreme levels, which a static shift has
    moved already, and shifts them again; UniPC takes the first T of T + 1 between 1 and its last
    timestep.
    """
    least = 1.0 / TRAIN_TIMESTEPS
    if config["_class_name"] == UNIPC:
        return np.linspace(1.0, least, steps + 1)[:-1]
    if not config.get("use_dynamic_shifting"):
        factor = float(config.get("shift", 1.0))
        least = factor * least / (1.0 + (factor - 1.0) * least)
    return np.linspace(1.0, least, steps)
