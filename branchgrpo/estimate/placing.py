"""Which GPUs a run wants, and what of it cannot be: a line for each role, with its sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil, floor

from branchgrpo.config.schema import Config
from branchgrpo.estimate.cards import Card
from branchgrpo.estimate.memory import Need

SPARE = 1e-6
ADVICE = {
    "rollout": "model.encode: precompute, fewer model.frames or a smaller picture, or larger cards",
    "reward": "dtype: bfloat16 of the rewards, a smaller batch, or larger cards",
}


def cards_wanted(needs: Sequence[Need]) -> int:
    """GPUs that all actors take when those that reserve fractions are packed, largest first, as
    Ray packs them."""
    whole, open_cards = 0, list[float]()
    parts = sorted(
        (need.gpus for need in needs for _ in range(need.count) if need.gpus), reverse=True
    )
    for part in parts:
        if part >= 1:
            whole += ceil(part)
            continue
        place = next((at for at, free in enumerate(open_cards) if free + SPARE >= part), None)
        if place is None:
            open_cards.append(1.0 - part)
        else:
            open_cards[place] -= part
    return whole + len(open_cards)


def problems(config: Config, needs: Sequence[Need], card: Card | None) -> list[str]:
    """What cannot run, each in one line KEY: words. Without a card memory is not judged."""
    on_cards = [need for need in needs if need.device == "cuda"]
    found = [*_reservations(config, on_cards)]
    if not card:
        return found
    for need in on_cards:
        if need.smallest > card.memory:
            found.append(f"{key(need)}: {_too_large(config, need, card)}")
    crowd = _crowd(on_cards)
    if not found and len(crowd) > 1:
        for turn in ("growing", "updating"):
            total = sum(need.at(turn) for need in crowd)
            if total > card.memory:
                names = ", ".join(f"{need.role} {size(need.at(turn))}" for need in crowd)
                keys = ", ".join(dict.fromkeys(f"{key(need)}.gpus" for need in crowd))
                found.append(
                    f"{keys}: expected roles that fit one {card.name} ({size(card.memory)}) "
                    f"together, got {names}, in all {size(total)}: larger fractions keep them apart"
                )
                break
    return found


def notes(config: Config, needs: Sequence[Need], card: Card | None) -> list[str]:
    """What fits, but not as configured: batches that will be halved."""
    if not card:
        return []
    keys = {"rollout": "rollout.max_batch", "learner": "learner.micro_batch"}
    return [
        f"{keys[need.role]}: {size(need.peak)} on a {card.name} of {size(card.memory)}: will be "
        "halved until it fits"
        for need in needs
        if need.role in keys and need.device == "cuda" and need.smallest <= card.memory < need.peak
    ]


def key(need: Need) -> str:
    """The config section of a role."""
    return "reward_workers" if need.role.startswith("reward") else need.role


def size(count: float) -> str:
    """Bytes for people, as cards are sold: 1 GB = 10⁹ bytes."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            amount = count / factor
            return f"{amount:.0f} {unit}" if amount >= 100 else f"{amount:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _reservations(config: Config, needs: Sequence[Need]) -> Iterator[str]:
    for need in needs:
        if need.gpus > 1:
            yield (
                f"{key(need)}.gpus: expected at most 1, since each process computes on one GPU, "
                f"got {need.gpus:g}: {ceil(need.gpus) - 1} of them would idle"
            )
    learner = config.learner
    if learner.ranks > 1 and 0 < learner.gpus <= 0.5 and learner.backend != "gloo":
        yield (
            "learner.gpus: expected more than 0.5 with several ranks, since NCCL refuses two on "
            f"one GPU, got {learner.gpus:g} with {learner.ranks} ranks"
        )


def _too_large(config: Config, need: Need, card: Card) -> str:
    gradients = need.updating.get("gradients", 0.0)
    work = {"gradients": gradients, "work": need.least - gradients}
    parts = dict(need.resident) | work | {"process": need.process}
    sums = " + ".join(f"{name} {size(amount)}" for name, amount in parts.items() if amount)
    advice = ADVICE["reward" if need.role.startswith("reward") else "rollout"]
    if need.role == "learner":
        advice = _learner_advice(config, need, card)
    return (
        f"expected at most {size(card.memory)}, a {card.name}, got {size(need.smallest)} a "
        f"process ({sums}): {advice}"
    )


def _learner_advice(config: Config, need: Need, card: Card) -> str:
    learner, found = config.learner, list[str]()
    present = learner.sharing(learner.ranks)
    gradients = need.updating.get("gradients", 0.0)
    shared = (sum(need.resident.values()) + gradients) * present  # of all ranks
    room = card.memory - need.process - (need.least - gradients)
    if room > 0:
        ranks = ceil(shared / room)
        verb = "learner.parallel: fsdp with" if learner.parallel == "ddp" else "more ranks: about"
        if learner.shard:
            found.append("learner.shard: 0")
        else:
            found.append(f"{verb} learner.ranks: {max(ranks, learner.ranks)}")
    if not config.model.adapter_rank:
        found.append("model.lora_rank above 0")
    if advice := config.model.memory_advice:
        found.append(advice)
    return ", or ".join(found) or "larger cards"


def _crowd(needs: Sequence[Need]) -> list[Need]:
    """Actors that Ray may put on one card, of all such choices that of the most bytes."""
    parts = [need for need in needs if 0 < need.gpus < 1]
    best: tuple[float, list[Need]] = (0.0, [])
    choices = [range(min(need.count, floor(1 / need.gpus + SPARE)) + 1) for need in parts]
    for counts in product(*choices):
        if sum(count * need.gpus for count, need in zip(counts, parts, strict=True)) > 1 + SPARE:
            continue
        crowd = [need for count, need in zip(counts, parts, strict=True) for _ in range(count)]
        total = max(sum(need.at(turn) for need in crowd) for turn in ("growing", "updating"))
        best = max(best, (total, crowd), key=lambda one: one[0])
    return best[1]
