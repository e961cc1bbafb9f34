"""The command tree: a run's trees, grown again from its checkpoints, to be looked at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from branchgrpo.app.check import check
from branchgrpo.errors import UserError

if TYPE_CHECKING:
    from branchgrpo.algo.methods.base import MethodRun
    from branchgrpo.config.schema import Config
    from branchgrpo.rollout.trees import GrownTree
    from branchgrpo.runs.measured import Target

MOST = 2
"""Iterations side by side."""


def tree(
    folder: Path,
    iterations: Sequence[int],
    prompt: int | None,
    out: Path | None,
    overrides: Mapping[str, str],
) -> int:
    """The command tree. Returns the exit code."""
    page, picture = drawn(folder, iterations, prompt, out, overrides)
    print(f"{page}\n{picture}")
    return 0


def drawn(
    folder: Path,
    iterations: Sequence[int],
    prompt: int | None,
    out: Path | None,
    overrides: Mapping[str, str],
    quiet: bool = False,
) -> tuple[Path, Path]:
    """Grow the trees of a run's iterations again, for one prompt, and write a page and a PNG;
    returns their paths.

    iterations: at most two, of which there are checkpoints (0: before training); none: 0 and the
    newest. prompt: index in the list of training prompts; None: the first of the last iteration.
    out: the page, and beside it the PNG; by default in FOLDER/trees. Raises UserError for what is
    not there.
    """
    from branchgrpo.config import load as configs
    from branchgrpo.report.tree.write import write
    from branchgrpo.runs.folder import is_run
    from branchgrpo.runs.measured import grown_with

    if not is_run(folder):
        raise UserError(f"tree: expected the folder of a run, got {folder}: it has no config.yaml")
    if len(iterations) > MOST or min(iterations, default=0) < 0:
        raise UserError(
            f"--iteration: expected one or two numbers ≥ 0, got {' '.join(map(str, iterations))}"
        )
    if out and out.suffix != ".html":  # the PNG beside it has the same name
        raise UserError(f"--out: expected a file NAME.html, got {out}")
    config = configs.load(folder / "config.yaml", overrides)
    check(config)
    targets: dict[int, Target] = {}
    for wanted in iterations or (0, None):
        target = grown_with(config, folder, wanted)
        targets[target.saved.iteration if target.saved else 0] = target
    chosen = _prompt(config, max(targets), prompt)
    found = _grown(targets, chosen, quiet)
    name = "-".join(f"{iteration:06d}" for iteration in found)
    page = out or folder / "trees" / f"{name}-prompt{chosen}.html"
    return write(page, folder.name, found)


def _prompt(config: Config, iteration: int, wanted: int | None) -> int:
    """The prompt whose trees are shown, by its index."""
    from branchgrpo.data import prompts

    known, _ = prompts.lists(config)
    if wanted is None:
        return prompts.deal(len(known), config.rollout.prompts, iteration, config.run.seed)[0]
    if not 0 <= wanted < len(known):
        raise UserError(f"--prompt: expected a number from 0 to {len(known) - 1}, got {wanted}")
    return wanted


def _grown(targets: Mapping[int, Target], prompt: int, quiet: bool) -> dict[int, list[GrownTree]]:
    """The prompt's trees by iteration."""
    from rich.console import Console

    from branchgrpo.app.service import started
    from branchgrpo.report.terminal import Display
    from branchgrpo.rollout import trees
    from branchgrpo.rollout.collect import RolloutCollector

    found = {}
    with ExitStack() as ending:
        prepared = {
            iteration: ending.enter_context(_prepared(targets[iteration], iteration))
            for iteration in sorted(targets)
        }
        first = next(iter(prepared.values()))
        display = ending.enter_context(
            Display("branchgrpo tree", 1, first.metric, console=Console(quiet=quiet))
        )
        form = ending.enter_context(started(first, display, learning=False))
        for iteration, config in prepared.items():
            display.phase(f"growing the trees of iteration {iteration}")
            grown = trees.grow(
                RolloutCollector(config, form(config), "tree"),
                _method(targets[iteration]),
                iteration=iteration,
                version=0,
                prompts=_with(prompt, config, iteration),
            )
            found[iteration] = [one for one in grown if one.key.prompt == prompt]
    return found


def _with(prompt: int, config: Config, iteration: int) -> list[int]:
    """The iteration's prompts, since advantages may compare them; one that was not its turn stands
    in for the first."""
    from branchgrpo.data import prompts

    known, _ = prompts.lists(config)
    chosen = prompts.deal(len(known), config.rollout.prompts, iteration, config.run.seed)
    return chosen if prompt in chosen else [prompt, *chosen[1:]]


def _method(target: Target) -> MethodRun:
    """The method, with what it had learned by then."""
    config = target.config
    method: MethodRun = config.method.start(config.sampling.steps, config.run.seed)
    if target.saved and (state := target.saved.state()["driver"].get("method")):
        method.load(state)
    return method


@contextmanager
def _prepared(target: Target, iteration: int) -> Iterator[Config]:
    """The config of the very model, put together beside the run, on the disk that workers see. No
    rewards but those that train."""
    from branchgrpo.app.roles import without_learners
    from branchgrpo.runs.measured import put_together

    made = target.folder.resolve() / "trees" / f".model-{iteration}"
    made.parent.mkdir(exist_ok=True)
    shutil.rmtree(made, ignore_errors=True)  # of one that was killed
    try:
        config = without_learners(put_together(target, made))
        evaluation = config.evaluation.model_copy(update={"rewards": ()})
        yield config.model_copy(update={"evaluation": evaluation})
    finally:
        shutil.rmtree(made, ignore_errors=True)
