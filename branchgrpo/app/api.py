"""What `import branchgrpo` offers, see docs/api.md.

Any thread may call it; a process does one thing on Ray at a time. Bad input is a UserError; nothing
here ends the process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from branchgrpo.app.environment import prepare
from branchgrpo.app.results import Comparison, Evaluation, Result
from branchgrpo.app.rewards import RewardLike, check_sendable, with_rewards
from branchgrpo.config import load as configs
from branchgrpo.config import registry
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import QUICKSTART, config_file
from branchgrpo.errors import UserError

if TYPE_CHECKING:
    from branchgrpo.comparison.grid import Grid

_ON_RAY = Lock()


def load_config(
    source: str | Path = "quickstart",
    *,
    preset: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """A shipped config by its name, or a YAML file; read and checked.

    preset: a method, by its name or as a YAML file, in place of what the file says about the
    method. overrides: values by dotted key, such as {"run.iterations": 50}; they go on top of all.
    Raises UserError with a line for each mistake.
    """
    return configs.load(
        config_file(source), _texts(overrides), None if preset is None else str(preset)
    )


def train(
    config: Config | str | Path = "quickstart",
    *,
    rewards: Sequence[RewardLike] | None = None,
    resume: str | Path = "",
    quiet: bool = False,
) -> Result:
    """Train by a config, or by what `load_config` makes of a name or file; evaluate before and
    after; write the run folder (docs/run-folder.md).

    rewards: in place of the config's, see `RewardLike`. resume: as the command's --resume: "auto",
    a run folder, or a checkpoint. quiet: print nothing. On the main thread Ctrl-C and SIGTERM end
    the run after the iteration in flight. Raises UserError for bad input, PlacementError where Ray
    has no room.
    """
    config = with_rewards(_config(config), rewards)
    with _on_ray(config):
        from branchgrpo.app.train import trained
        from branchgrpo.report.sinks import read

        folder, summary = trained(config, str(resume), quiet)
    return Result(
        folder=folder.resolve(),
        config=config,
        summary=summary,
        metrics=read(folder / "metrics.jsonl"),
    )


def evaluate(
    what: Result | Config | str | Path,
    *,
    config: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    checkpoint: int | None = None,
    rewards: Sequence[RewardLike] | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Measure a model on the held-out prompts: of a result or a run folder the trained weights, of
    a config the model as it is before training, of a pipeline's folder that pipeline.

    config: a shipped name or a YAML file that says by what to measure, in place of the run's own.
    overrides: values by dotted key on top of it. checkpoint: of a run, the weights of that
    iteration's checkpoint. rewards: in place of the config's. Raises as `train` does.
    """
    from branchgrpo.runs import measured

    target: measured.Target
    if isinstance(what, Config):
        if config is not None or checkpoint is not None or overrides:
            raise UserError(
                "evaluate: expected the folder of a run, or a result, with config, overrides or "
                "checkpoint, got a config"
            )
        target = measured.Target(measured.with_diversity(what), Path(what.model.path))
    elif isinstance(what, Result) and config is None and not overrides:
        own = measured.with_diversity(what.config)
        target = measured.weights_of(what.folder, own, checkpoint)
    else:
        folder = what.folder if isinstance(what, Result) else Path(what).expanduser()
        texts = _texts(overrides)
        if rewards is not None:  # the run's own may be functions of another program
            texts = {"rewards": "[{name: jpeg}]", "evaluation.metric": ""} | texts
        target = measured.chosen(
            folder,
            config=None if config is None else config_file(config),
            texts=texts,
            checkpoint=checkpoint,
            default=QUICKSTART,
        )
    target = replace(target, config=with_rewards(target.config, rewards))
    with _on_ray(target.config):
        from branchgrpo.app.evaluate import evaluated

        folder, summary = evaluated(target, quiet)
    return Evaluation(folder=folder.resolve(), config=target.config, summary=summary)


def compare(
    methods: Sequence[str | Path],
    *,
    config: str | Path = "quickstart",
    seeds: int = 1,
    budget: int | str = 50,
    overrides: Mapping[str, Any] | None = None,
    rewards: Sequence[RewardLike] | None = None,
    folder: str | Path | None = None,
    gain: float | None = None,
    grid: Mapping[str, Sequence[Any]] | str | Path | None = None,
    grid_seeds: int = 1,
    grid_budget: int | str | None = None,
    quiet: bool = False,
) -> Comparison:
    """Train several methods on the same prompts, seeds, reward and evaluation, one after another;
    the same call again goes on where it stopped.

    methods: presets, by name or as YAML files. config: a shipped name or a YAML file. budget: of
    each run, iterations (50), seconds ("240s") or minutes ("4m"). folder: where it is kept; by
    default of the request's digest, in run.folder. gain: of the held-out reward, whose time counts.
    grid: values by dotted key, such as {"learner.learning_rate": [1e-4, 2e-4]}, or a YAML file of
    them: each method is tuned with it before, on training prompts alone, and its best goes into the
    comparison. grid_seeds, grid_budget: runs of each combination, and the training of each (by
    default `budget`). Raises as `train` does.
    """
    from branchgrpo.comparison.budget import Budget
    from branchgrpo.comparison.runs import Comparison as Runs

    if isinstance(methods, str | Path) or not methods or seeds < 1:
        raise UserError(
            f"compare: expected a list of methods and at least 1 seed, got {methods!r} and {seeds}"
        )
    place = None if folder is None else Path(folder).expanduser()
    runs = Runs(
        base=config_file(config),
        methods=[str(method) for method in methods],
        seeds=seeds,
        budget=Budget.parse(str(budget)),
        overrides=_texts(overrides),
        folder=place,
        gain=gain,
        change=lambda loaded: with_rewards(loaded, rewards),
        grid=None if grid is None else _grid(grid, grid_seeds, grid_budget or budget),
    )
    with _on_ray(next(iter(runs.configs.values()))):
        from branchgrpo.app.compare import compared

        finished, table = compared(runs, place, quiet)
    return Comparison(
        folder=runs.folder.resolve(),
        finished=finished,
        summary=json.loads((runs.folder / "compare.json").read_text(encoding="utf-8")),
        table=table,
    )


def register(kind: str, name: str, target: Any) -> None:
    """Give a component of one's own a name in a table, for configs of this process.

    kind: rewards, models, methods, advantage, pruning or loss. target: a class, for rewards also a
    function; or "./FILE.py:NAME" or "package.module:NAME". Raises UserError for what is none.
    """
    registry.register(kind, name, target)


def _config(given: Config | str | Path) -> Config:
    if isinstance(given, Config):
        return given
    if isinstance(given, str | Path):
        return load_config(given)
    raise UserError(
        "config: expected what load_config returns, a shipped name or a YAML file, got "
        f"{type(given).__name__}"
    )


def _texts(overrides: Mapping[str, Any] | None) -> dict[str, str]:
    """As the command line has them. Text stays as it is; JSON is YAML as well."""
    found = {}
    for key, value in (overrides or {}).items():
        try:
            plain = isinstance(value, str | Path)
            found[key] = str(value) if plain else json.dumps(value, default=_plain)
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"{key}: expected text, a number, a list or a mapping, got {value!r}"
            ) from error
    return found


def _grid(grid: Mapping[str, Sequence[Any]] | str | Path, seeds: int, budget: int | str) -> Grid:
    """What methods are tuned with."""
    from branchgrpo.comparison.budget import Budget
    from branchgrpo.comparison.grid import Grid, read

    length = Budget.parse(str(budget), "grid_budget")
    if isinstance(grid, str | Path):
        return Grid(read([str(grid)]), seeds, length)
    found = {}
    for key, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise UserError(f"grid: {key}: expected a list of values, got {values!r}")
        found[key] = tuple(_texts({key: value})[key] for value in values)
    return Grid(found, seeds, length)


def _plain(value: Any) -> Any:
    """What JSON doesn't know: paths, and numbers of numpy."""
    return str(value) if isinstance(value, Path) else value.item()


@contextmanager
def _on_ray(config: Config) -> Iterator[None]:
    """A process has one connection to Ray; what its workers score by goes there by pickle."""
    if not _ON_RAY.acquire(blocking=False):
        raise UserError("branchgrpo: expected one call at a time, another thread's goes on")
    try:
        prepare()
        import ray

        if ray.is_initialized():
            raise UserError(
                "branchgrpo: expected a process that isn't connected to Ray, got one that is: "
                "ray.shutdown() first; cluster.address says which Ray to join"
            )
        check_sendable(config)
        yield
    finally:
        _ON_RAY.release()
