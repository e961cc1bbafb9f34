"""A page of trees and the same as a PNG, as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from branchgrpo.files.whole import write_whole
from branchgrpo.report.tree.html import Shown, tree_page
from branchgrpo.report.tree.png import tree_png
from branchgrpo.rollout.trees import GrownTree


def write(
    page: Path, title: str, grown: Mapping[int, Sequence[GrownTree]], note: str = ""
) -> tuple[Path, Path]:
    """Write the page, and beside it the PNG; returns both paths. grown: a prompt's trees, by
    iteration. note: what is to be known of them."""
    shown = [Shown(f"iteration {iteration}", trees) for iteration, trees in grown.items()]
    page.parent.mkdir(parents=True, exist_ok=True)
    picture = page.with_suffix(".png")
    write_whole(page, tree_page(title, shown, note))
    tree_png(picture, title, shown)
    return page, picture
