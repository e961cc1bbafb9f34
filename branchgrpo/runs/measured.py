"""What `eval` measures: a pipeline folder; or a run's weights in whatever form it wrote them, or
one of its checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from branchgrpo.checkpoint.files import Saved
from branchgrpo.checkpoint.shards import whole_tensors
from branchgrpo.checkpoint.store import Store
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError, one_line
from branchgrpo.models import lora
from branchgrpo.models.files import json_file
from branchgrpo.report.settings import words
from branchgrpo.runs.folder import is_run
from branchgrpo.runs.places import checkpoints, named, root

DIVERSITY = 32
"""Prompts whose pictures' distances are measured, unless the config says otherwise."""


@dataclass(frozen=True)
class Target:
    """A config, and the weights that it is to be measured with."""

    config: Config  # its model is that of the folder, or what the run began with
    folder: Path  # what was asked for
    # of a transformer, or of those that train: the model's other parts come from config.model.path
    weights: Path | None = None
    saved: Saved | None = None  # a checkpoint of a run
    tensors: str = ""  # which of its weights; empty: those that are evaluated

    @property
    def name(self) -> str:
        """What was measured, in words."""
        return (
            f"{self.folder}, iteration {self.saved.iteration}" if self.saved else str(self.folder)
        )


def chosen(
    folder: Path,
    config: Path | None,
    texts: Mapping[str, str],
    checkpoint: int | None,
    default: Path,
) -> Target:
    """What to measure, by a folder and the command line's other words.

    config: a YAML file; without one a run's own, and `default` for a pipeline's folder. checkpoint:
    of which iteration, for a run. Raises UserError where there are no weights to measure.
    """
    if (
        folder.name == "weights"
        and not (folder / "model_index.json").is_file()
        and is_run(folder.parent)
    ):
        folder = folder.parent
    if not is_run(folder):
        if checkpoint is not None:
            raise UserError(
                f"--checkpoint: expected the folder of a run, got {folder}, which "
                "has no config.yaml"
            )
        return Target(_loaded(config or default, {**texts, "model.path": str(folder)}), folder)
    own = folder / "config.yaml"
    found = _loaded(config or own, texts)
    if config:  # the run says what its weights are of
        meant = configs.load(own, {}).model
        kept = {
            key: getattr(meant, key)
            for key in ("path", "lora_rank", "lora_alpha", "lora_targets", "train_denoisers")
            if hasattr(meant, key)
        }
        found = _with(
            found, {key: value for key, value in kept.items() if f"model.{key}" not in texts}
        )
    return weights_of(folder, found, checkpoint, keep_alpha="model.lora_alpha" in texts)


def weights_of(
    folder: Path, found: Config, checkpoint: int | None = None, keep_alpha: bool = False
) -> Target:
    """A run's weights in whatever form it wrote them; or a checkpoint's, the newest where it wrote
    none.

    found: what the run was, or whatever else its weights are to be measured by. keep_alpha: of
    adapters, that of `found`. Raises UserError where there are no weights.
    """
    weights = folder / "weights"
    if checkpoint is None and (weights / "model_index.json").is_file():
        return Target(_with(found, {"path": str(weights), "lora_rank": 0, "lora_path": ""}), folder)
    if checkpoint is None and any(
        (weights / lora.file_of(part)).is_file() for part in found.model.trained_denoisers
    ):
        return Target(_with_adapter(found, weights, keep_alpha), folder)
    if checkpoint is None and any(
        (place / "config.json").is_file() for place in found.model.denoisers_in(weights).values()
    ):
        return Target(_with(found, {"lora_rank": 0, "lora_path": ""}), folder, weights)
    return Target(_with(found, {"lora_path": ""}), folder, saved=_saved(found, folder, checkpoint))


@contextmanager
def prepared(target: Target) -> Iterator[tuple[Config, Path]]:
    """The config of the very model, and a new folder for what is measured, which goes again when
    the block fails.

    Weights of other forms than a pipeline's are put together in it, on the disk that workers see,
    until the block ends.
    """
    folder = named(root(target.config), f"eval-{datetime.now():%Y%m%d-%H%M%S}")
    made = folder.resolve() / "model"
    try:
        yield put_together(target, made), folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write(target: Target, folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Write eval.json; returns what it holds."""
    found = {"model": target.name, **row}
    (folder / "eval.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def listing(row: Mapping[str, Any]) -> str:
    """The metrics of an eval.json, a line each, and what they were drawn with."""
    diversity = {f"diversity/{name}": one for name, one in (row["diversity"] or {}).items()}
    drawn = words(row["settings"])
    lines = [
        f"{name:16} {value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}] of "
        f"{value['n']} prompts; {drawn}"
        for name, value in (row["held_out"] | diversity).items()
    ]
    lines += [
        f"{name:16} {found[name]:.4f} of {found['n']} prompts of {category}; {drawn}"
        for name in row["held_out"]
        for category, found in row.get("categories", {}).items()
    ]
    return "\n".join(lines)


def put_together(target: Target, made: Path) -> Config:
    """The config of the very model: its path is a folder that diffusers reads. Weights of other
    forms than a pipeline's are put together in the folder `made`, which must last as long."""
    config, weights = target.config, target.weights
    if target.saved:
        weights = made / "weights"
        averaged = config.evaluation.weights == "ema"
        tensors = target.tensors or ("ema" if averaged else "weights")
        if _export(config, target.saved, tensors, weights) == "lora":
            return _with_adapter(config, weights)
    if not weights:
        return config
    source, base = config.model.folder().resolve(), made / "pipeline"
    base.mkdir(parents=True)
    places = config.model.denoisers_in(weights)
    index = json_file("model.path", source / "model_index.json")
    for name in {"model_index.json", *index} - places.keys():
        if (source / name).exists():
            (base / name).symlink_to(source / name)
    for part, place in places.items():
        (base / part).symlink_to(place.resolve())
    return _with(config, {"path": str(base)})


def _export(config: Config, saved: Saved, file: str, folder: Path) -> str:
    """Write a checkpoint's weights as `run.export` would: adapters, or the transformer. Returns
    which."""
    tensors = whole_tensors(saved, file)
    model = config.model.build("cpu", ("denoiser",))
    try:
        model.load(tensors)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--checkpoint: {saved.path} does not fit the model: {one_line(error)}"
        ) from error
    form = "lora" if model.adapted else "transformer"
    model.save(folder, config.model.folder(), form)
    return form


def grown_with(found: Config, folder: Path, iteration: int | None) -> Target:
    """The weights of a run that trees of this iteration were grown with, as a checkpoint holds
    them; None: those of its newest one; 0: those of model.path, which training began with. Raises
    UserError where there are none."""
    if iteration == 0:
        return Target(found, folder)
    saved = _saved(found, folder, iteration, "--iteration")
    file = "weights" if found.grown_with == "policy" else found.grown_with
    return Target(_with(found, {"lora_path": ""}), folder, saved=saved, tensors=file)


def _saved(config: Config, folder: Path, iteration: int | None, key: str = "--checkpoint") -> Saved:
    """The checkpoint of this iteration, or the newest. Raises UserError, naming those that are
    there."""
    where = checkpoints(config, folder)
    if "://" not in where and not Path(where).is_dir():
        raise UserError(
            f"{folder}: expected weights/ or checkpoints, found neither there nor in {where}"
        )
    store = Store(where)
    found = store.newest() if iteration is None else store.newest(iteration)
    if found:
        return found
    there = ", ".join(str(number) for number in store.iterations()) or "none"
    damaged = "; ".join(f"{name}: {reason}" for name, reason in store.damaged)
    any_ = "a valid checkpoint" if key == "--iteration" else "weights/ or a valid checkpoint"
    wanted = any_ if iteration is None else f"one of iteration {iteration}"
    raise UserError(
        f"{key}: expected {wanted} in {where}, found "
        f"{there}{f' (damaged: {damaged})' if damaged else ''}"
    )


def _loaded(path: Path, texts: Mapping[str, str]) -> Config:
    config = configs.load(path, texts)
    return config if "evaluation.diversity" in texts else with_diversity(config)


def with_diversity(config: Config) -> Config:
    """The config, whose evaluation measures diversity as well."""
    if config.evaluation.diversity:
        return config
    evaluation = config.evaluation.model_copy(
        update={"diversity": min(DIVERSITY, config.evaluation.prompts)}
    )
    return config.model_copy(update={"evaluation": evaluation})


def _with_adapter(config: Config, weights: Path, keep_alpha: bool = False) -> Config:
    """Its scale is in its weights, as `models.lora.save` writes it: alpha is the rank."""
    keys = {"lora_path": str(weights.resolve())} | (
        {} if keep_alpha else {"lora_alpha": config.model.adapter_rank}
    )
    return _with(config, keys)


def _with(config: Config, keys: Mapping[str, Any]) -> Config:
    """The config with other keys of the model, those that its family has; what trains and is
    exported plays no part."""
    model = config.model
    known = {key: value for key, value in keys.items() if key in type(model).model_fields}
    return config.model_copy(update={"model": model.model_copy(update=known)})
