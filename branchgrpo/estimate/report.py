"""An estimate for people: a table of roles, and what an iteration takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from branchgrpo.estimate.estimate import Estimate
from branchgrpo.estimate.memory import Need
from branchgrpo.estimate.placing import size

if TYPE_CHECKING:
    from rich.console import RenderableType

BAND = "± 40 %, ratios better"


def render(found: Estimate, there: int) -> RenderableType:
    """there: GPUs on this machine or cluster."""
    from rich.console import Group
    from rich.text import Text

    judged = [Text(f"does not fit: {line}", style="bold red") for line in found.problems]
    judged += [Text(f"note: {line}", style="yellow") for line in found.notes]
    made_of = [(need.role, _parts(need)) for need in found.needs]
    blank = Text()
    parts = [_roles(found), blank, _grid(made_of), blank, _grid(list(_lines(found, there)))]
    return Group(*parts, *judged)


def _grid(lines: list[tuple[str, str]]) -> RenderableType:
    """Names, and texts that wrap beside them."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=12)
    for name, text in lines:
        table.add_row(name, text)
    return table


def _roles(found: Estimate) -> RenderableType:
    from rich.table import Table

    table = Table("role", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[0].min_width = 12
    for name in ("processes", "GPUs each", "memory each", "at batch 1"):
        table.add_column(name, justify="right")
    if found.times:
        table.add_column("busy", justify="right")
    for need in found.needs:
        busy = [_busy(found, need)] if found.times else []
        sizes = size(need.peak), size(need.smallest)
        table.add_row(need.role, str(need.count), f"{need.gpus:g}", *sizes, *busy)
    return table


def _busy(found: Estimate, need: Need) -> str:
    role = "reward" if need.role.startswith("reward") else need.role
    assert found.times
    return f"{found.times.busy[role]:.0%}"


def _parts(need: Need) -> str:
    """The largest turn's, each with its size."""
    turn = max((need.growing, need.updating), key=lambda work: sum(work.values()))
    parts = dict(need.resident) | dict(turn) | {"process": need.process}
    return " + ".join(f"{name} {size(amount)}" for name, amount in parts.items() if amount)


def _lines(found: Estimate, there: int) -> Iterator[tuple[str, str]]:
    model, work = found.model, found.counts
    if model:
        trains = "adapters" if model.adapted else "weights"
        by = f", by the published sizes of {found.sizes_of}" if found.sizes_of else ""
        yield (
            "model",
            f"{_many(model.parameters)} parameters, {_many(model.trained)} of them {trains} "
            f"that learn; {model.forward.flops / 1e12:.3g} TFLOP a forward{by}",
        )
    else:
        yield "model", "its family does not say what it needs"
    if found.unknown:
        yield "rewards", f"{', '.join(found.unknown)}: not known, counted as nothing"
    if found.cards:
        yield "GPUs", f"{found.cards} wanted, {there or 'none'} here"
    per = found.rollout_flops, found.update_flops
    more = f" and {work.compared:.0f} to compare with" if work.compared else ""
    chosen = f" chosen by {work.scouts:.0f} scouts" if work.scouts else ""
    cheap = f", {work.scouted:.0f} of them scouts'" if work.scouts else ""
    yield (
        "an iteration",
        f"{work.prompts} prompts, {work.trees:.0f} trees{chosen}, {work.pictures:.0f} leaves; "
        f"{work.grown:.0f} forwards to grow{cheap} ({per[0] / 1e15:.3g} PFLOP with decoding), "
        f"{work.trained:.0f} to train{more} ({per[1] / 1e15:.3g} PFLOP with backward)",
    )
    resting = [f"{need.role} {size(need.resting)}" for need in found.needs if need.resting]
    if resting:
        yield (
            "main memory",
            f"{', '.join(resting)} a process, pinned, and up to twice as much: pinned blocks are "
            "powers of two",
        )
    if found.sent:
        parts = ", ".join(f"{name} {size(amount)}" for name, amount in found.sent.items())
        yield "object store", f"{size(sum(found.sent.values()))} an iteration: {parts}"
    yield from _seconds(found)


def _seconds(found: Estimate) -> Iterator[tuple[str, str]]:
    times, card = found.times, found.card
    if times and card:
        yield (
            f"on {card.name}",
            f"{times.iteration:.0f} s an iteration ({BAND}): grow {times.growing:.0f}, score "
            f"{times.scoring:.0f}, update {times.updating:.0f}, publish {times.publishing:.0f}; "
            f"GPUs idle {times.idle:.0%} of the time",
        )
    elif found.cards and not card:
        yield "seconds", "name a card with --card to have them, and memory judged"


def _many(count: float) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
