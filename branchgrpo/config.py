"""The configuration: a YAML file plus dotted command-line overrides, checked before anything starts.

Loading one imports neither torch nor Ray.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from branchgrpo import advantage, loss, methods, models, pruning, rewards
from branchgrpo.errors import UserError
from branchgrpo.table import union

if TYPE_CHECKING:
    from branchgrpo.advantage.depthwise import DepthWise as Advantage
    from branchgrpo.loss.base import LossOptions as Loss
    from branchgrpo.methods.base import MethodOptions as Method
    from branchgrpo.models.flux import FluxModel as Model
    from branchgrpo.pruning.width import WidthPruning as Pruning
    from branchgrpo.rewards.ocr import OcrReward as Reward
else:
    Advantage, Loss, Method = union(advantage.TABLE), union(loss.TABLE), union(methods.TABLE)
    Model, Pruning, Reward = union(models.TABLE), union(pruning.TABLE), union(rewards.TABLE)


class Section(BaseModel):
    """Unknown keys are errors; every key has a description and is read somewhere (tests see to both)."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Run(Section):
    """What to call a run and where it goes."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="name of the run; its folder is NAME-DATE-TIME")
    folder: str = Field("runs", description="where run folders are made")
    seed: int = Field(0, ge=0, description="seed of every random choice")
    iterations: int = Field(100, ge=0, description="iterations to train; 0 = until max_minutes")
    max_minutes: float = Field(0, ge=0, description="stop after this many minutes of training, held-out checks not counted; 0 = no limit")
    export: Literal["pipeline", "none"] = Field("pipeline", description="write the trained weights as a folder that diffusers loads, or not")


class Sampling(Section):
    """The denoising schedule."""

    steps: int = Field(20, ge=2, description="T, denoising steps")
    shift: float = Field(3.0, gt=0, description="shift of the noise levels")


class Role(Section):
    """Resources of one kind of actor, as Ray counts them."""

    cpus: float = Field(1.0, ge=0, description="CPUs each actor reserves")
    gpus: float = Field(0.0, ge=0, description="GPUs each actor reserves; above 0 it computes there")
    threads: int = Field(0, ge=0, description="compute threads of each actor; 0 = its CPUs, at least 1")

    @property
    def compute_threads(self) -> int:
        """Threads to use."""
        return self.threads or max(1, int(self.cpus))

    @property
    def device(self) -> str:
        """torch device of the actor."""
        return "cuda" if self.gpus else "cpu"


class Rollout(Role):
    """Growing trees."""

    workers: int = Field(2, ge=1, description="rollout actors")
    prompts: int = Field(4, ge=1, description="prompts per iteration")
    trees_per_prompt: int = Field(1, ge=1, description="trees of each prompt; they form one group")
    fork_depth: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        "auto", description="splits grown by one worker before a tree is cut into subtrees for all; auto: as few as keep every worker busy"
    )
    tasks_per_worker: int = Field(1, ge=1, description="pieces each worker's share is cut into; more of them let scoring start earlier")
    max_batch: int = Field(64, ge=1, description="latents per forward")
    storage_dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype in which samples are stored, scored and sent")


class RewardRole(Role):
    """Scoring leaves."""

    workers: int = Field(1, ge=1, description="reward actors")


class Learner(Role):
    """Training."""

    ranks: int = Field(1, ge=1, description="learner ranks (data parallel)")
    backend: Literal["auto", "gloo", "nccl"] = Field("auto", description="torch.distributed backend; auto: nccl on GPUs, gloo on CPUs")
    learning_rate: float = Field(1e-5, gt=0, description="of AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="the gradient is clipped to this norm before every optimiser step")
    optimiser_steps: int = Field(1, ge=1, description="optimiser steps per iteration")
    micro_batch: int = Field(64, ge=1, description="parents per forward and backward")
    token_budget: int = Field(0, ge=0, description="latent and text tokens per forward and backward, which may make micro-batches smaller; 0 = no limit")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="learning rate behind the warm-up, over run.iterations")
    warmup: int = Field(0, ge=0, description="optimiser steps in which the learning rate rises linearly")
    final_rate: float = Field(0.0, ge=0, le=1, description="part of the learning rate that linear and cosine end with")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of an exponential mean of the weights; 0 = none")
    max_skips: int = Field(3, ge=1, description="non-finite gradients in a row that end the run")
    timeout_seconds: float = Field(1800, gt=0, description="longest a collective or an update may take")
    publish_chunk_mb: int = Field(256, ge=1, description="size of one object when weights are published")


class Evaluation(Section):
    """The held-out check."""

    prompts: int = Field(256, ge=2, description="held-out prompts before and after training")
    steps: int = Field(0, ge=0, description="denoising steps of evaluation; 0 = sampling.steps")
    weights: Literal["policy", "ema"] = Field("policy", description="which weights are evaluated and exported")
    every: int = Field(0, ge=0, description="iterations between checks on the way; 0 = none")
    every_seconds: float = Field(0, ge=0, description="seconds of training between checks on the way; 0 = none")
    diversity: int = Field(0, ge=0, description="prompts of which several pictures are drawn, to measure how far apart they are; 0 = none")
    prompts_between: int = Field(64, ge=2, description="held-out prompts of those checks")
    pictures: int = Field(32, ge=1, description="pictures in samples/before.png and after.png")
    metric: str = Field("", description="the reported score that decides; empty: the first one reported")


class Gates(Section):
    """Checks at start-up, a few seconds each."""

    enabled: bool = Field(True, description="run them")
    on_policy_tolerance: float = Field(1e-5, gt=0, description="largest |ratio − 1| before the first update")
    probe_tolerance: float = Field(1e-4, gt=0, description="largest difference of velocities between learner and rollout worker")


class Cluster(Section):
    """How to reach Ray."""

    address: str = Field("auto", description="auto: RAY_ADDRESS if set (as in a submitted job), else a new Ray on this machine; or an address")
    dashboard: bool = Field(True, description="serve the dashboard when Ray is started here")
    wait_seconds: float = Field(30, ge=0, description="how long to wait for the resources")
    object_store_mb: int = Field(512, ge=80, description="object store of a Ray started here")
    task_timeout_seconds: float = Field(1800, gt=0, description="longest a rollout, scoring or publishing task may take")


class Config(Section):
    """Everything a run is made of."""

    run: Run = Field(default_factory=Run, description="name, folder, seed and length")
    model: Model = Field(description="what is trained")
    prompts: str = Field(description="training prompts: a text file, or embedded:NAME")
    held_out: str = Field(description="held-out prompts: a text file, or embedded:NAME")
    sampling: Sampling = Field(default_factory=Sampling, description="the denoising schedule")
    method: Method = Field(description="where trees branch")
    rewards: tuple[Reward, ...] = Field(min_length=1, description="what is wanted; several are summed by weight")
    advantage: Advantage = Field(description="how edges earn credit")
    pruning: tuple[Pruning, ...] = Field((), description="what is left out of the gradient")
    loss: Loss = Field(description="the policy loss")
    rollout: Rollout = Field(default_factory=Rollout, description="rollout actors")
    reward_workers: RewardRole = Field(default_factory=RewardRole, description="reward actors")
    learner: Learner = Field(default_factory=Learner, description="learner ranks and optimiser")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="the held-out check")
    gates: Gates = Field(default_factory=Gates, description="start-up checks")
    cluster: Cluster = Field(default_factory=Cluster, description="how to reach Ray")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.method.check(self.sampling.steps)
        if not self.run.iterations and not self.run.max_minutes:
            raise ValueError("run.iterations: expected a number of iterations, or run.max_minutes above 0, got 0 for both")
        if not self.run.iterations and self.learner.schedule != "constant":
            raise ValueError(f"learner.schedule: {self.learner.schedule} needs run.iterations, got 0")
        if self.evaluation.diversity == 1:
            raise ValueError("evaluation.diversity: expected 0 or at least 2 prompts, got 1: one has no interval")
        if self.evaluation.weights == "ema" and not self.learner.ema:
            raise ValueError("evaluation.weights: ema needs learner.ema above 0")
        self._suits()
        reported = [f"{reward.name}/{score}" for reward in self.rewards for score in reward.report]
        if self.evaluation.metric and self.evaluation.metric not in reported:
            raise ValueError(f"evaluation.metric: expected one of {reported}, got {self.evaluation.metric!r}")
        return self

    def _suits(self) -> None:
        """Raise ValueError where a part does not go with the method's shape of tree."""
        rules = [rule.name for rule in self.pruning]
        if self.method.name == "tempflow":
            if self.rollout.fork_depth not in ("auto", 0):
                raise ValueError("rollout.fork_depth: expected auto or 0 with tempflow, whose trees are not cut")
            if {"width", "depth"} & set(rules):
                raise ValueError(f"pruning: expected only `steps` with tempflow, whose random edges all lie on one trunk, got {rules}")
        if self.method.name == "chains" and "tree" in (getattr(self.advantage, "group", ""), getattr(self.advantage, "std", "")):
            raise ValueError("advantage: expected no comparison within a tree with chains, which have one leaf each")
        modes = [rule.mode for rule in self.pruning if rule.name == "width"]
        if self.method.name == "chains" and "parent_top1" in modes:
            raise ValueError("pruning: expected width mode `extremes` with chains, which have no splits, got `parent_top1`")

    @property
    def metric(self) -> str:
        """The reported score that decides, as reward/score."""
        first = self.rewards[0]
        return self.evaluation.metric or f"{first.name}/{first.report[0]}"


PRESETS = Path(__file__).resolve().parents[1] / "configs" / "methods"
"""Where presets are: a method by one line."""

COMPONENTS = ("model", "method", "advantage", "loss")
"""Sections whose `name` picks one of several."""

METHOD_SECTIONS = ("method", "advantage", "pruning", "loss")
"""What a preset decides in full."""


def presets() -> list[str]:
    """Names of all presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: a date that is none, bytes that are not UTF-8
        raise UserError(f"config: expected a YAML file, cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"config: expected a mapping of sections in {path}, got {type(tree).__name__}")
    return tree


def _preset(name: Any) -> dict[str, Any]:
    """A preset's keys: one of ours, or a YAML file, which may itself be based on one of ours."""
    if name in presets():
        return _yaml(PRESETS / f"{name}.yaml")
    if not str(name).endswith((".yaml", ".yml")):
        raise UserError(f"preset: expected a YAML file or one of {', '.join(presets())}, got {name!r}")
    tree = _yaml(Path(name).expanduser())
    own = tree.pop("preset", None)
    if own is not None and own not in presets():
        raise UserError(f"{name}: preset: expected one of {', '.join(presets())}, got {own!r}")
    found: dict[str, Any] = _merge(_preset(own), tree) if own is not None else tree
    return found


def _merge(below: Any, above: Any) -> Any:
    """`above` on top of `below`, mapping by mapping; sections that name different components don't mix."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _replaced(below.get(key), value) if key in COMPONENTS else _merge(below.get(key), value) for key, value in above.items()}


def _replaced(below: Any, above: Any) -> Any:
    same = isinstance(below, dict) and isinstance(above, dict) and below.get("name") == above.get("name", below.get("name"))
    return _merge(below, above) if same else above


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a.b.c in nested dicts and lists; a number names a list's entry."""
    *path, last = dotted.split(".")
    node: Any = tree
    try:
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"--{dotted}: there is no such key") from error


def load(path: Path, overrides: dict[str, str] | None = None, preset: str | None = None) -> Config:
    """Read and check a config. Raises UserError with one line that names the key.

    A file's own keys go on top of the preset that it names; `preset` (the command line's) replaces what the file
    says about the method; overrides go on top of all.
    """
    tree = _yaml(path)
    own = tree.pop("preset", None)
    if preset is not None:
        tree = _merge({key: value for key, value in tree.items() if key not in METHOD_SECTIONS}, _preset(preset))
    elif own is not None:
        tree = _merge(_preset(own), tree)
    for key, text in (overrides or {}).items():
        try:
            value = yaml.safe_load(text)
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"--{key}: expected a YAML value, got {text!r}") from error
        _set(tree, key, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_one_line(path, error)) from error


def _one_line(path: Path, error: ValidationError) -> str:
    first, *rest = error.errors()
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    got = "" if first["type"] in ("extra_forbidden", "missing", "value_error") else f", got {first['input']!r}"
    more = f" (and {len(rest)} more)" if rest else ""
    return f"{path}: {where + ': ' if where else ''}{message}{got}{more}"


def dump(config: Config) -> str:
    """The whole config as YAML, every default written out; `load` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
