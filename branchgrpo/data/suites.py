"""Published suites of prompts by their name: which files they are, what they call a prompt's
category, and whose they are. Nothing is downloaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from branchgrpo.data.json_files import json_file
from branchgrpo.data.lists import Listed
from branchgrpo.errors import UserError

if TYPE_CHECKING:
    from branchgrpo.config.schema import Config

HPSV2, SUITE = "hpsv2:", "suite:"

STYLES = ("anime", "concept-art", "paintings", "photo")
"""Of HPSv2's benchmark, in the package's order."""

FOLDER = "suites"
"""Where they are looked for, unless evaluation.suites says otherwise: a folder for each."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One file of a format, whatever it is called; or several of these names."""

    category: str  # the metadata that scores are grouped by
    publisher: str  # where its files are to be had
    ending: str = ""  # of the one file
    names: tuple[str, ...] = ()  # of several, whose stems are the category

    def files(self, key: str, folder: Path) -> list[Path]:
        """What is there in its folder. Raises UserError, naming the config key, the place and the
        publisher, unless it is all."""
        wanted = ", ".join(self.names) or f"one {self.ending} file"
        there = sorted(path for path in folder.glob("*") if path.is_file())
        found = [path for path in there if path.name in self.names or self._is_one(path)]
        if len(found) != (len(self.names) or 1):
            got = ", ".join(path.name for path in found) or "none"
            raise UserError(
                f"{key}: expected {wanted} in {folder.absolute()} (below evaluation.suites), got "
                f"{got}: published by {self.publisher}"
            )
        return found

    def _is_one(self, path: Path) -> bool:
        return bool(self.ending) and path.suffix.lower() == self.ending


SUITES = {
    # rows {tag, include, prompt}
    "geneval": Suite(
        category="tag",
        publisher="github.com/djghosh13/geneval, prompts/evaluation_metadata.jsonl",
        ending=".jsonl",
    ),
    # Prompts,Category
    "drawbench": Suite(
        category="Category",
        publisher="the authors of Imagen (imagen.research.google), DrawBench as CSV",
        ending=".csv",
    ),
    # Prompt, Category, Challenge, Note
    "partiprompts": Suite(
        category="Category",
        publisher="github.com/google-research/parti, PartiPrompts.tsv",
        ending=".tsv",
    ),
    # lists of strings
    "hpdv2": Suite(
        category="style",
        publisher="huggingface.co/datasets/zhwang/HPDv2, benchmark/*.json",
        names=tuple(f"{style}.json" for style in STYLES),
    ),
}


def named(key: str, source: str) -> Suite:
    """The suite of suite:NAME. Raises UserError, naming the config key, where there is none."""
    if (name := source.removeprefix(SUITE)) not in SUITES:
        raise UserError(
            f"{key}: expected {SUITE}NAME with NAME one of {', '.join(SUITES)}, got {source}"
        )
    return SUITES[name]


def files(key: str, source: str, folder: str) -> list[Path]:
    """Those of suite:NAME, in FOLDER/NAME. Raises UserError as `Suite.files` and `named` do."""
    place = Path(os.path.expanduser(folder)) / source.removeprefix(SUITE)
    return named(key, source).files(key, place)


def category(config: Config) -> str:
    """Metadata of held-out prompts by whose values scores are shown; empty: by none."""
    known = SUITES.get(config.held_out.removeprefix(SUITE))
    own = known.category if known and config.held_out.startswith(SUITE) else ""
    return config.evaluation.category or own


def benchmark(key: str, source: str) -> Listed:
    """What hpsv2.benchmark_prompts(STYLE) gives for hpsv2:STYLE, of the files it keeps; `all` joins
    the styles. Nothing is downloaded."""
    style = source.removeprefix(HPSV2)
    if style not in (*STYLES, "all"):
        raise UserError(
            f"{key}: expected {HPSV2}STYLE with STYLE one of {', '.join(STYLES)}, all, got {source}"
        )
    samples = (
        sample
        for one in (STYLES if style == "all" else (style,))
        for sample in json_file(key, _benchmark_file(key, one))
    )
    return Listed(samples, source)


def _benchmark_file(key: str, style: str) -> Path:
    """In the folder of hpsv2, or in Hugging Face's cache, which hpsv2 downloads to."""
    from huggingface_hub import try_to_load_from_cache

    path = (
        Path(os.environ.get("HPS_ROOT", os.path.expanduser("~/.cache/hpsv2")))
        / "datasets"
        / "benchmark"
        / f"{style}.json"
    )
    if path.is_file():
        return path
    cached = try_to_load_from_cache("zhwang/HPDv2", f"benchmark/{style}.json", repo_type="dataset")
    if not isinstance(cached, str):
        raise UserError(
            f"{key}: expected hpsv2's benchmark prompts at {path}, found none; "
            "hpsv2.benchmark_prompts() downloads them"
        )
    return Path(cached)
