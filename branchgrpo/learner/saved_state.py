"""What a checkpoint says, held against the policy that is to go on from it, before anything of the
policy is changed.

Its seal says that the bytes are those that were written; not by whom. So types, names and shapes
are checked as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from branchgrpo.checkpoint.files import Saved
from branchgrpo.checkpoint.manifest import Damaged, shown
from branchgrpo.checkpoint.readers import ALONE, Readers
from branchgrpo.checkpoint.shards import Cut, Shards
from branchgrpo.checkpoint.shards import in_shards as shard_form
from branchgrpo.checkpoint.store import Store, open_saved
from branchgrpo.errors import UserError
from branchgrpo.learner.norm_reference import NormReference
from branchgrpo.learner.policy import PolicyUpdate
from branchgrpo.learner.state import FILES, MOMENTS, NORM, SECOND, restore, restore_shards
from branchgrpo.models.base import Adapter

Tensors = dict[str, dict[str, Tensor]]


def to_go_on_from(
    where: str, keep: int, origin: str, readers: Readers = ALONE
) -> tuple[Saved | None, bool, tuple[str, ...]]:
    """The newest valid checkpoint at `where`, or `origin` where there is none; whether it is of
    `where`; and the damaged ones, with why. Raises UserError where all are damaged."""
    store = Store(where, keep)
    saved = store.newest(readers=readers)
    damaged = tuple(f"{name}: {reason}" for name, reason in store.damaged)
    if saved is None and damaged:  # beginning again would in the end delete what may be mended
        raise UserError(
            f"checkpoints: expected a valid one in {where}, every one is damaged: "
            f"{'; '.join(damaged)}"
        )
    if saved is None and origin:
        return open_saved(origin, readers=readers), False, damaged
    return saved, saved is not None, damaged


def take(saved: Saved, policy: PolicyUpdate, group: ProcessGroup | None) -> dict[str, Any]:
    """Set a new policy to a checkpoint, in either form; returns its state.json. Raises UserError,
    one line, where it is damaged, of other types, or another model's: the policy then stays as it
    was, unless a file changes while it is read. group: of ranks that hold shards."""
    if not shard_form(saved):
        state, tensors = loaded(saved, policy)
        restore(policy, state, tensors)
        return state
    with _told(saved):
        state, shards = saved.state(), Shards(saved)
        check_state(state, policy)
        files = (*FILES, SECOND)
        check_tensors({file: shards.named(file) for file in files}, policy)
        restore_shards(policy, state, shards, group)
    return state


def loaded(saved: Saved, policy: PolicyUpdate) -> tuple[dict[str, Any], Tensors]:
    """State and tensors by file and name of a checkpoint in whole files, which `state.restore` can
    take. Raises UserError, one line, where they are damaged, of other types, or another model's."""
    with _told(saved):
        state = saved.state()
        check_state(state, policy)
        for file in FILES:
            if f"{file}.safetensors" not in saved.files:
                raise Damaged(f"expected a file {file}.safetensors, found none")
        there = (*FILES, *([SECOND] if f"{SECOND}.safetensors" in saved.files else []))
        tensors = {file: saved.tensors(f"{file}.safetensors") for file in there}
        check_tensors(tensors, policy)
    return state, tensors


@contextmanager
def _told(saved: Saved) -> Iterator[None]:
    """What is damaged becomes a line for people, which names the checkpoint once."""
    try:
        yield
    except Damaged as damage:
        line = str(damage).removeprefix(f"{saved.path}: ")
        raise UserError(f"checkpoint {saved.path}: {line}") from damage


def saved_reference(saved: Saved, model: Adapter) -> NormReference | None:
    """What the run measures its velocities by; older checkpoints have none. Raises UserError, one
    line, for what is none of this model's."""
    file = f"{NORM}.safetensors"
    if file not in saved.files:
        return None
    try:
        with _told(saved):
            return NormReference.read(saved.tensors(file), model)
    except ValueError as error:
        raise UserError(f"checkpoint {saved.path}: {file}: {error}") from error


def check_state(state: Mapping[str, Any], policy: PolicyUpdate) -> None:
    """Raises Damaged for state.json of other keys or types than this program writes."""
    for key in ("version", "skips"):
        _require(_count(state.get(key)), key, "a count", state.get(key))
    _require(
        _number(state.get("steps")) and state["steps"] >= 0,
        "steps",
        "a number of steps",
        state.get("steps"),
    )
    fewer = state.get("fewer_steps", {})  # older checkpoints have none
    _require(
        isinstance(fewer, dict)
        and fewer.keys() <= set(policy.names)
        and all(_number(one) and one >= 0 for one in fewer.values()),
        "fewer_steps",
        "numbers of steps by parameter",
        fewer,
    )
    _check_schedule(state.get("schedule"), policy.scheduler.state_dict())
    driver = state.get("driver")
    _require(isinstance(driver, dict), "driver", "an object", driver)
    assert isinstance(driver, dict)
    for key, right, wanted in (
        ("iteration", _count, "a count"),
        ("seconds", _number, "a number"),
        ("gates", _numbers, "numbers by name"),
    ):
        _require(key not in driver or right(driver[key]), f"driver.{key}", wanted, driver.get(key))


def _check_schedule(found: Any, own: Mapping[str, Any]) -> None:
    """The learning rate's schedule takes every key that it is given: no others than its own, and of
    the same kinds."""
    _require(
        isinstance(found, dict) and "last_epoch" in found,
        "schedule",
        "an object with last_epoch",
        found,
    )
    for key, value in found.items():
        if key not in own or key == "lr_lambdas":
            raise Damaged(f"state.json: expected no key schedule.{key[:60]!r}")
        like = own[key]
        if isinstance(like, list):
            fits = isinstance(value, list) and len(value) == len(like) and all(map(_number, value))
        elif isinstance(like, bool):
            fits = isinstance(value, bool)
        else:
            fits = _count(value)
        _require(fits, f"schedule.{key}", f"something like {like!r}", value)


def check_tensors(tensors: Mapping[str, Mapping[str, Tensor | Cut]], policy: PolicyUpdate) -> None:
    """Raises Damaged where names, shapes or dtypes are not the policy's. Only weights must be there
    for every name."""
    masters = policy.named_masters()
    learnt = tensors["weights"]
    if masters.keys() != learnt.keys():
        differing = sorted(name[:100] for name in masters.keys() ^ learnt.keys())[:3]
        raise Damaged(
            f"expected weights of {len(masters)} parameters, got {len(learnt)}; differing: "
            f"{differing}"
        )
    first, second = (tensors[moment].keys() for moment in MOMENTS)
    if first != second:
        raise Damaged(
            f"expected both moments of AdamW for the same parameters, got {len(first)} and "
            f"{len(second)}"
        )
    for file, named in tensors.items():
        for name, value in named.items():
            where = f"{file}.safetensors: {name[:100]}"
            wanted = tuple(masters[name].shape) if name in masters else None
            if wanted != tuple(value.shape):
                raise Damaged(
                    f"{where}: expected "
                    f"{'no such tensor' if wanted is None else f'shape {wanted}'}, got "
                    f"{tuple(value.shape)}"
                )
            if not value.dtype.is_floating_point or value.dtype.itemsize < 2:
                raise Damaged(
                    f"{where}: expected float32 or alike, got "
                    f"{str(value.dtype).removeprefix('torch.')}"
                )


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(type(one) in (int, float) for one in value.values())


def _require(fits: bool, key: str, wanted: str, got: Any) -> None:
    if not fits:
        raise Damaged(f"state.json: {key}: expected {wanted}, got {shown(got)}")
