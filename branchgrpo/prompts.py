"""Prompt lists: where they come from, what is held out, and the order they are dealt in."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from branchgrpo.errors import UserError
from branchgrpo.models.base import EMBEDDED
from branchgrpo.prompt_files import JsonLineFile, LineFile, Listed, ParquetFile, Prompts, identity, json_file, one_line

if TYPE_CHECKING:
    from branchgrpo.config import Config

HPSV2, SPLIT = "hpsv2:", "split:"
SPLIT_SEED = 0
"""Not the run's: runs of other seeds are compared on the same held-out prompts."""

STYLES = ("anime", "concept-art", "paintings", "photo")
"""Of HPSv2's benchmark, in the package's order."""

Indices = NDArray[np.integer[Any]]


def read(key: str, source: str) -> Prompts:
    """Prompts of a file, by its suffix: .jsonl, .json, .parquet, else text with one prompt a line; blank ones are left out.

    embedded:NAME is a list shipped with the package, hpsv2:STYLE are the benchmark prompts of the package hpsv2. Text and
    JSON Lines files are indexed, not loaded, and must not change. A file that was read lately is not indexed again.
    Raises UserError, naming the config key, for a file that is missing, unreadable, wrong or empty.
    """
    if source.startswith(SPLIT):
        raise UserError(f"{key}: expected a source of its own, got {source}: that is for held_out alone")
    if source.startswith(HPSV2):
        return _benchmark(key, source.removeprefix(HPSV2))
    path = Path(os.path.expanduser(source))
    if source.startswith(EMBEDDED):
        path = Path(__file__).parent / "assets" / "prompts" / f"{source.removeprefix(EMBEDDED)}.txt"
    try:
        if not path.is_file():
            raise UserError(f"{key}: expected a file of prompts, found {'something else' if path.exists() else 'none'} at {path}")
        found = _opened(key, path.absolute(), identity(path.stat()))
    except OSError as error:
        raise UserError(f"{key}: expected a file of prompts, cannot read {path}: {one_line(error)}") from error
    if not found:
        raise UserError(f"{key}: expected at least one prompt, found none in {path}")
    return found


def lists(config: Config) -> tuple[Prompts, Prompts]:
    """Training prompts and held-out prompts of a config. Raises UserError as `read` and `split` do."""
    train = read("prompts", config.prompts)
    if not config.held_out.startswith(SPLIT):
        return train, read("held_out", config.held_out)
    if not re.fullmatch(r"[0-9]{1,18}", number := config.held_out.removeprefix(SPLIT)):
        raise UserError(f"held_out: expected {SPLIT}N with N a number of prompts, got {config.held_out}")
    return split(train, int(number), SPLIT_SEED)


def split(prompts: Sequence[str], count: int, seed: int) -> tuple[Prompts, Prompts]:
    """Take `count` prompts out by a seeded shuffle: (those that stay, in their order; those taken out, as shuffled).

    Views: no text is copied, and they keep `count` indices. Places are told apart, not texts: a prompt that occurs
    twice can be in both. Raises UserError unless 0 < count < len(prompts).
    """
    if not 0 < count < len(prompts):
        raise UserError(f"held_out: expected {SPLIT}N with N from 1 to {len(prompts) - 1}, one less than prompts has, got {count}")
    taken = _shuffled(len(prompts), (seed, 0, 1))[:count].copy()  # 3 numbers: no epoch of `deal` is shuffled alike
    return _Rest(prompts, taken), _Taken(prompts, taken)


def deal(count: int, batch: int, iteration: int, seed: int) -> list[int]:
    """Indices of an iteration's prompts: epochs of a seeded shuffle, never one prompt twice in a batch.

    The same for the same arguments, whatever was dealt before: a resumed run goes on where it stopped.
    """
    if batch > count:
        raise UserError(f"rollout.prompts: expected at most {count}, the number of training prompts, got {batch}")
    per_epoch = count // batch  # what is left over of an epoch comes first in none, by chance of the shuffle
    epoch, place = divmod(iteration, per_epoch)
    dealt: list[int] = _epoch(count, seed, epoch)[place * batch : (place + 1) * batch].tolist()
    return dealt


class _Taken(Prompts):
    """The prompts at some places of others."""

    def __init__(self, source: Sequence[str], places: Indices):
        self._source, self._places = source, places

    def __len__(self) -> int:
        return len(self._places)

    def _at(self, place: int) -> str:
        return self._source[int(self._places[place])]


class _Rest(Prompts):
    """The prompts at all other places, in their order."""

    def __init__(self, source: Sequence[str], without: Indices):
        self._source = source
        self._before: Indices = np.sort(without) - np.arange(len(without))  # how many stay before each that is left out

    def __len__(self) -> int:
        return len(self._source) - len(self._before)

    def _at(self, place: int) -> str:
        return self._source[place + int(np.searchsorted(self._before, place, side="right"))]


def _shuffled(count: int, seed: tuple[int, ...]) -> Indices:
    """What Generator.permutation(count) gives, in half the memory where 32 bits are enough."""
    order: Indices = np.arange(count, dtype=np.int32 if count <= np.iinfo(np.int32).max else np.int64)
    np.random.default_rng(seed).shuffle(order)
    return order


@lru_cache(maxsize=1)  # an epoch's order serves all its iterations
def _epoch(count: int, seed: int, epoch: int) -> Indices:
    return _shuffled(count, (seed, epoch))


@lru_cache(maxsize=2)  # training and held-out prompts: the check before a run and the run itself ask for both
def _opened(key: str, path: Path, known: tuple[int, ...]) -> Prompts:
    """A file's prompts; `known` is the file's identity, so that one which changed is read anew."""
    del known
    readers = {".json": json_file, ".jsonl": JsonLineFile, ".parquet": ParquetFile}
    return readers.get(path.suffix.lower(), LineFile)(key, path)


def _benchmark(key: str, style: str) -> Listed:
    """What hpsv2.benchmark_prompts(style) gives, of the files it keeps; `all` joins the styles. Nothing is downloaded."""
    if style not in (*STYLES, "all"):
        raise UserError(f"{key}: expected {HPSV2}STYLE with STYLE one of {', '.join(STYLES)}, all, got {HPSV2}{style}")
    return Listed(text for one in (STYLES if style == "all" else (style,)) for text in json_file(key, _benchmark_file(key, one)))


def _benchmark_file(key: str, style: str) -> Path:
    """In the folder of hpsv2, or in Hugging Face's cache, which hpsv2 downloads to."""
    from huggingface_hub import try_to_load_from_cache

    path = Path(os.environ.get("HPS_ROOT", os.path.expanduser("~/.cache/hpsv2"))) / "datasets" / "benchmark" / f"{style}.json"
    if path.is_file():
        return path
    cached = try_to_load_from_cache("zhwang/HPDv2", f"benchmark/{style}.json", repo_type="dataset")
    if not isinstance(cached, str):
        raise UserError(f"{key}: expected hpsv2's benchmark prompts at {path}, found none; hpsv2.benchmark_prompts() downloads them")
    return Path(cached)
