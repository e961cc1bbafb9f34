"""`branchgrpo train CONFIG --smoke`: a config's whole road, once, on whatever machine is here.

The same config with a small random model of the same family, fewer prompts, workers and ranks. All
other keys stay, so that what does not go together shows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from math import floor
from operator import mul
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter
from typing import Any

from branchgrpo.config import cross_checks
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.data.records import row_of
from branchgrpo.errors import UserError
from branchgrpo.rewards.small.stand_in import stand_in

PROMPTS, CHECKED = 2, 4
"""An iteration's prompts, and those of a held-out check, at most."""

EVALUATION_STEPS = 4
STORE_MB = 512
"""Of the object store, at most."""

LEARNER_SHARE, OTHER_SHARE = 0.6, 0.2
"""Of a GPU, for each rank and each other actor: no two ranks fit on one, which NCCL refuses."""


def smoke(config: Config) -> int:
    """Run it; returns the exit code. What fails keeps its trace."""
    import transformers

    from branchgrpo.app.train import trained

    transformers.utils.logging.disable_progress_bar()  # small files take no time
    begun = perf_counter()
    folder = Path(mkdtemp(prefix="branchgrpo-smoke-"))
    print(f"smoke: everything is written to {folder}")
    small = shrunk(config, folder)
    _, summary = trained(small)
    if not summary["gates"] and small.gates.enabled:
        raise RuntimeError("smoke: no optimiser step was made: all leaves scored the same?")
    print(f"smoke: passed in {perf_counter() - begun:.0f} s")
    return 0


def shrunk(config: Config, folder: Path) -> Config:
    """The config made small, below `folder`; prints a line for each part that is replaced. Raises
    UserError where the smaller one does not go together."""
    rewards = [
        stand_in(reward, folder / f"reward-{index}")
        for index, reward in enumerate(config.all_rewards)
    ]
    trained = len(config.rewards)
    model = _model(config, folder)
    small = config.model_copy(
        update={
            "model": model,
            "rewards": tuple(reward for reward, _ in rewards[:trained]),
            **roles(config, cores=len(os.sched_getaffinity(0)), gpus=_gpus()),
            **_course(config, folder, model),
        }
    )
    measured = tuple(reward for reward, _ in rewards[trained:])
    small = small.model_copy(update={"evaluation": _with(small.evaluation, rewards=measured)})
    if small.metric not in _scores(small):  # of a reward that is replaced
        small = _with(small, evaluation=_with(small.evaluation, metric=""))
    told = [
        f"{config.reward_key(index)} ({reward.title}): {why} in place of its own"
        for index, (reward, (_, why)) in enumerate(zip(config.all_rewards, rewards, strict=True))
        if why
    ]
    for line in (*_differences(config, small), *told):
        print(f"smoke: {line}")
    small = small.model_copy(update=_prompts(config, folder))
    if lines := cross_checks.problems(small):
        raise UserError("\n".join(lines))
    return small


def _with(section: Any, **keys: Any) -> Any:
    return section.model_copy(update=keys)


def _scores(config: Config) -> list[str]:
    rewards = config.all_rewards
    return [f"{reward.title}/{score}" for reward in rewards for score in reward.reported()]


def _model(config: Config, folder: Path) -> Any:
    small = config.model.shrunk(folder / "model")
    moved = {key: str(folder / key.rpartition(".")[2]) for key in small.shared_folders()}
    return _with(small, **{key.removeprefix("model."): path for key, path in moved.items()})


def roles(config: Config, cores: int, gpus: int) -> dict[str, Any]:
    """Every role at least once, two ranks where there are, within these cores and GPUs."""
    rollout, rewards, learner = config.rollout, config.reward_workers, config.learner
    ranks = min(learner.ranks, 2, gpus if gpus and learner.gpus else cores)
    workers = min(rollout.begun, 2, max(1, cores // 2))
    others = workers + len(config.reward_groups)
    left = max(0.0, gpus - ranks * LEARNER_SHARE)
    cpus = floor(100 * cores / (ranks + others)) / 100

    def here(role: Any, share: float, **keys: Any) -> Any:
        on_gpus = min(share, role.gpus) if gpus else 0.0
        threads = min(role.threads, cores)
        reserved = {"cpus": min(role.cpus, cpus), "gpus": on_gpus, "threads": threads}
        return _with(role, **reserved, resource="", **keys)

    share = min(OTHER_SHARE, floor(100 * left / others) / 100)
    return {
        "rollout": here(
            rollout,
            share,
            workers=workers,
            min_workers=min(rollout.min_workers, workers),
            request_workers=0,
            prompts=min(rollout.prompts, PROMPTS),
        ),
        "reward_workers": here(rewards, share, workers=1, min_workers=1),
        "learner": here(learner, LEARNER_SHARE, ranks=ranks),
    }


def _gpus() -> int:
    if not Path("/dev/nvidiactl").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def _course(config: Config, folder: Path, model: Any) -> dict[str, Any]:
    """A short run of the small model in a folder of its own, which nobody else hears of."""
    evaluation, checkpoint = config.evaluation, config.checkpoint
    iterations = 2 if config.async_.max_staleness else 1  # the second one's trees are grown ahead
    return {
        "run": _with(
            config.run, folder=str(folder / "runs"), iterations=iterations, wandb="", mlflow=""
        ),
        "evaluation": _with(
            evaluation,
            prompts=min(evaluation.prompts, CHECKED),
            prompts_between=min(evaluation.prompts_between, CHECKED),
            steps=min(evaluation.steps, EVALUATION_STEPS),
            every=min(evaluation.every, 1),
            diversity=min(evaluation.diversity, 2),
            pictures=min(evaluation.pictures, CHECKED),
            **_evaluation_size(config, model),
        ),
        "checkpoint": _with(checkpoint, folder="", every=int(checkpoint.kept)),
        "cluster": _with(
            config.cluster,
            address="local",
            dashboard=False,
            object_store_mb=min(config.cluster.object_store_mb, STORE_MB),
        ),
        "sinks": (),
    }


def _evaluation_size(config: Config, model: Any) -> dict[str, int]:
    """Twice the small model's along a side that is larger than in training; else as in training."""
    pairs = zip(config.evaluated.picture_size, config.model.picture_size, strict=True)
    sides = [2 * (judged > trained) for judged, trained in pairs]
    return dict(zip(("height", "width"), map(mul, sides, model.picture_size), strict=True))


def _prompts(config: Config, folder: Path) -> dict[str, Any]:
    """The first prompts of its lists, or of the embedded ones in place of files that are missing,
    in files of their own: all prompts may be encoded before training."""
    given = {
        "prompts": _source(config, "prompts", "embedded:train"),
        "held_out": _source(config, "held_out", "embedded:heldout"),
    }
    lists = prompts.lists(config.model_copy(update=given))
    files = {}
    for key, texts, count in zip(given, lists, (PROMPTS, CHECKED), strict=True):
        path = folder / f"{key}.jsonl"
        rows = [row_of(texts[place]) for place in range(min(count, len(texts)))]
        if wanted := config.model.pictures_taken[0]:
            rows = [row | {"images": drawn(folder, wanted)} for row in rows]
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files[key] = str(path)
    return files


def drawn(folder: Path, count: int) -> list[str]:
    """Paths of so many small pictures, of one grey each, in place of the records' own."""
    from PIL import Image

    paths = [folder / f"picture-{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        Image.new("RGB", (48, 32), (60 + 40 * index,) * 3).save(path)
    return list(map(str, paths))


def _source(config: Config, key: str, embedded: str) -> str:
    """Where the prompts come from. Raises UserError for a file that is there and wrong."""
    given: str = getattr(config, key)
    if given.startswith(prompts.SPLIT):
        return given
    try:
        prompts.read(key, given, config.evaluation.suites)
    except UserError as error:
        if Path(given).expanduser().exists():
            raise
        print(f"smoke: {key}: {embedded} ({error}) in place of {given}")
        return embedded
    return given


def _differences(config: Config, small: Config) -> Iterator[str]:
    """A line for each section whose keys differ: KEY NEW (OLD)."""
    before, after = configs.plain(config), configs.plain(small)
    for section, keys in after.items():
        old = before[section]
        if section == "rewards" or keys == old:
            continue
        if not isinstance(keys, dict):
            yield f"{section}: {keys} (was {old})"
            continue
        changed = [
            f"{key} {value if value != '' else 'empty'} (was {old[key]})"
            for key, value in keys.items()
            if value != old[key]
        ]
        yield f"{section}: {', '.join(changed)}"
