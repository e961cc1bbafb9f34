"""Prompt lists: where they come from, what is held out, and the order they are dealt in."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from branchgrpo.data import suites
from branchgrpo.data.files import LineFile, identity
from branchgrpo.data.json_files import JsonLineFile, json_file
from branchgrpo.data.lists import Indices, Listed, Prompts
from branchgrpo.data.tables import CsvFile, ParquetFile, TsvFile
from branchgrpo.data.views import Rest, Taken
from branchgrpo.errors import UserError, one_line
from branchgrpo.models.places import EMBEDDED

if TYPE_CHECKING:
    from branchgrpo.config.schema import Config

SPLIT = "split:"
SPLIT_SEED = 0
"""Not the run's: runs of other seeds are compared on the same held-out prompts."""

PART = 1 << 20
"""Digests compared at a time."""

LINES = ("", ".txt", ".text", ".prompts")
"""Suffixes of files with a prompt a line."""

READERS: dict[str, Callable[[str, Path], Prompts]] = {
    **dict.fromkeys(LINES, LineFile),
    **{
        ".jsonl": JsonLineFile,
        ".ndjson": JsonLineFile,
        ".json": json_file,
        ".csv": CsvFile,
        ".tsv": TsvFile,
        ".parquet": ParquetFile,
    },
}

READ = (
    ".txt, .text, .prompts or no suffix (one prompt a line), .jsonl, .ndjson, .json, .csv, "
    ".tsv, each also with .gz, or .parquet"
)


def read(key: str, source: str, folder: str = suites.FOLDER) -> Prompts:
    """The different records of a file, by its suffix, see READ: in the file's order, those without
    a prompt and repeated ones left out.

    embedded:NAME is a list shipped with the package, hpsv2:STYLE are the benchmark prompts of the
    package hpsv2, suite:NAME is a published suite, whose files are in FOLDER/NAME. Files are
    indexed, not loaded, lists of JSON apart, and must not change. A file that was read lately is
    not indexed again. Raises UserError, naming the config key, for a file
    that is missing, unreadable, wrong or empty.
    """
    if source.startswith(SPLIT):
        raise UserError(
            f"{key}: expected a source of its own, got {source}: that is for held_out alone"
        )
    if source.startswith(suites.HPSV2):
        return distinct(suites.benchmark(key, source))
    if source.startswith(suites.SUITE):
        return _suite(key, source, folder)
    path = Path(os.path.expanduser(source))
    if source.startswith(EMBEDDED):
        path = (
            Path(__file__).parents[1]
            / "assets"
            / "prompts"
            / f"{source.removeprefix(EMBEDDED)}.txt"
        )
    try:
        if not path.is_file():
            raise UserError(
                f"{key}: expected a file of prompts, found "
                f"{'something else' if path.exists() else 'none'} at {path}"
            )
        found = _opened(key, path.absolute(), identity(path.stat()))
    # the latter two: a .gz that is cut off or damaged
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{key}: expected a file of prompts, cannot read {path}: {one_line(error)}"
        ) from error
    if not found:
        left_out = f" ({found.blank} blank or null left out)" if found.blank else ""
        raise UserError(
            f"{key}: expected at least one prompt, found none in "
            f"{path}{left_out}{found.hint and f': {found.hint}'}"
        )
    return found


def lists(config: Config) -> tuple[Prompts, Prompts]:
    """Training prompts and held-out prompts of a config, no text twice in either; what is after
    split:N: is in neither. Raises UserError as `read` and `split` do, and where all held-out texts
    are trained on."""
    train = read("prompts", config.prompts, config.evaluation.suites)
    if config.held_out.startswith(SPLIT):
        number, colon, others = config.held_out.removeprefix(SPLIT).partition(":")
        if not re.fullmatch(r"[0-9]{1,18}", number) or (colon and not others):
            raise UserError(
                f"held_out: expected {SPLIT}N with N a number of prompts, or {SPLIT}N:OTHERS, got "
                f"{config.held_out}"
            )
        if others:
            train, kept = lists(config.model_copy(update={"held_out": others}))
            train = Rest(train, np.flatnonzero(shared(kept, train)))
        return split(train, int(number), SPLIT_SEED)
    held_out = read("held_out", config.held_out, config.evaluation.suites)
    if shared(train, held_out).all():
        got = f"got {config.held_out}: all its {len(held_out)} are in {config.prompts} too"
        raise UserError(
            f"held_out: expected texts that are not trained on, {got}; {SPLIT}N holds N of "
            "them back"
        )
    return train, held_out


def distinct(source: Prompts) -> Prompts:
    """Each record once, where it comes first: they differ in what models see, or in metadata. The
    source itself where none comes twice."""
    repeated = _repeated(source)
    if not len(repeated):
        return source
    found = Rest(source, repeated)
    found.repeated = len(repeated)
    return found


def _repeated(source: Prompts) -> Indices:
    """Places of what came before, rising."""
    digests = source.digests
    if not source.has_metadata:
        return _again(digests)
    alike = _again(digests, firsts=True)
    return alike[_again(digests[alike], source.details(alike))] if len(alike) else alike


def _again(
    digests: NDArray[np.uint64], details: NDArray[np.uint32] | None = None, firsts: bool = False
) -> Indices:
    """Places where a digest, with its detail, came before, rising; with `firsts` also those where
    it came first. A 32nd of the digests is looked at a time, which takes that much less memory than
    sorting all."""
    tops = digests.view(np.uint8)[np.dtype(np.uint64).itemsize - 1 :: 8]  # little endian
    small = np.int32 if len(digests) <= np.iinfo(np.int32).max else np.int64
    found = [np.empty(0, small)]
    for part in range(32):
        begins = range(0, len(tops), PART)
        own = [np.flatnonzero(tops[first : first + PART] >> 3 == part) + first for first in begins]
        places = np.concatenate([*own, np.empty(0, np.int64)])
        keys = digests[places]
        if details is None:
            order = np.argsort(keys, kind="stable")
            same = keys[order[1:]] == keys[order[:-1]]
        else:
            marks = details[places]
            order = np.lexsort((marks, keys))
            same = (keys[order[1:]] == keys[order[:-1]]) & (marks[order[1:]] == marks[order[:-1]])
        again = np.zeros(len(order), bool)
        again[1:] = same
        if firsts:
            again[:-1] |= same
        found.append(places[order[again]].astype(small))
    places = np.concatenate(found)
    places.sort()
    return places


def shared(train: Prompts, held_out: Prompts) -> NDArray[np.bool_]:
    """[len(held_out)] which are trained on too, by what models see of them."""
    wanted, places = np.unique(held_out.digests, return_inverse=True)
    trained, digests = np.zeros(len(wanted), bool), train.digests
    for first in range(0, len(digests), PART):
        part = digests[first : first + PART]
        at = np.minimum(np.searchsorted(wanted, part), len(wanted) - 1)
        trained[at[wanted[at] == part]] = True
    return trained[places]


def split(prompts: Sequence[str] | Prompts, count: int, seed: int) -> tuple[Prompts, Prompts]:
    """Take `count` records out by a seeded shuffle: (those that stay, in their order; those taken
    out, as shuffled).

    Views: no text is copied, and they keep `count` indices. What comes twice counts once, and what
    models see is on one side alone: records that differ from those taken out in metadata only stay
    on neither. Raises UserError unless 0 < count < number of different records, and where none
    stays.
    """
    found = distinct(prompts if isinstance(prompts, Prompts) else Listed.of(prompts))
    if not 0 < count < len(found):
        got = f"{len(found)} different texts, got {count}" + (
            f" ({found.repeated} more are repeated)" if found.repeated else ""
        )
        raise UserError(
            f"held_out: expected {SPLIT}N with N from 1 to {len(found) - 1}, one less than "
            f"prompts has: {got}"
        )
    # 3 numbers: no epoch of `deal` is shuffled alike
    taken = _shuffled(len(found), (seed, 0, 1))[:count].copy()
    held_out = Taken(found, taken)
    if not found.has_metadata:
        return Rest(found, taken), held_out
    stays = Rest(found, np.flatnonzero(shared(held_out, found)))
    if not stays:
        raise UserError(
            f"held_out: expected {SPLIT}N that leaves prompts to train on, got N = {count}: all "
            f"{len(found)} records have a prompt of those held out"
        )
    return stays, held_out


def deal(count: int, batch: int, iteration: int, seed: int) -> list[int]:
    """Indices of an iteration's prompts: epochs of a seeded shuffle, never one place twice in a
    batch. `lists` hold no text twice, and so does no batch.

    The same for the same arguments, whatever was dealt before: a resumed run goes on where it
    stopped.
    """
    if batch > count:
        raise UserError(
            f"rollout.prompts: expected at most {count}, the number of different training "
            f"prompts, got {batch}"
        )
    # what is left over of an epoch comes first in none, by chance of the shuffle
    per_epoch = count // batch
    epoch, place = divmod(iteration, per_epoch)
    dealt: list[int] = _epoch(count, seed, epoch)[place * batch : (place + 1) * batch].tolist()
    return dealt


def _shuffled(count: int, seed: tuple[int, ...]) -> Indices:
    """What Generator.permutation(count) gives, in half the memory where 32 bits are enough."""
    order: Indices = np.arange(
        count, dtype=np.int32 if count <= np.iinfo(np.int32).max else np.int64
    )
    np.random.default_rng(seed).shuffle(order)
    return order


@lru_cache(maxsize=1)  # an epoch's order serves all its iterations
def _epoch(count: int, seed: int, epoch: int) -> Indices:
    return _shuffled(count, (seed, epoch))


# training and held-out prompts: the check before a run and the run itself ask for both
@lru_cache(maxsize=2)
def _opened(key: str, path: Path, known: tuple[int, ...]) -> Prompts:
    """A file's prompts; `known` is the file's identity, so that one which changed is read anew."""
    del known
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if suffix == ".gz" else suffix
    if inner not in READERS or (suffix, inner) == (".gz", ".parquet"):
        raise UserError(f"{key}: expected a file that ends in {READ}, got {path}")
    return distinct(READERS[inner](key, path))


def _suite(key: str, source: str, folder: str) -> Prompts:
    """The records of suite:NAME, each with its category in its metadata."""
    name = suites.named(key, source).category
    paths = suites.files(key, source, folder)
    if len(paths) == 1:
        found = read(key, str(paths[0]))
        if name not in found[0].metadata:
            raise UserError(
                f"{key}: expected records with {name} beside their prompts in {paths[0]}, got "
                f"{', '.join(found[0].metadata) or 'prompts alone'}"
            )
        return found
    samples = (
        replace(sample, metadata={name: path.stem, **sample.metadata})
        for path in paths
        for sample in json_file(key, path)
    )
    return distinct(Listed(samples, source))
