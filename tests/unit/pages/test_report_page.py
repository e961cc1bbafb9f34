"""What the pages about runs say, of folders whose figures are known."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.written_run import PROMPTS, written_run

from branchgrpo.errors import UserError
from branchgrpo.pages import curves, facts
from branchgrpo.pages.run_page import REFRESH, run_page
from branchgrpo.pages.sections import alarms
from branchgrpo.pages.written import Reports, report
from branchgrpo.report.page import text


class Parsed(HTMLParser):
    """Texts, headings' sections, and addresses of a page."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        if tag == "section":
            self.sections.append(known["id"])
        self.addresses += [known[name] for name in ("src", "href") if name in known]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_of_a_run_says_what_its_files_do(tmp_path: Path) -> None:
    folder = written_run(tmp_path, ended="iterations")
    (folder / "trees").mkdir()
    for name in ("000020-prompt1", "000040-prompt2", "000040-prompt3"):
        (folder / "trees" / f"{name}.html").touch()
    Image.new("RGB", (2000, 800)).save(folder / "trees" / "000040-prompt2.png")
    assert report([folder]) == folder / "report.html"
    document = (folder / "report.html").read_text()
    page = Parsed(document)
    wanted = "alarms reward scores gold pictures leaves trees flat phases cost settings origin"
    assert page.sections == wanted.split()
    for words in ("ocr/exact 0.100 → 0.700", "+0.600, 95 % interval [+0.500, +0.700]", "60 of 200"):
        assert words in re.sub(r"\s+", " ", page.words)
    assert all(prompt in page.words for prompt in PROMPTS) and text(PROMPTS[0]) in document
    outside = [one for one in page.addresses if not one.startswith("data:") and "/" in one]
    # of the newest the one with a picture; then all
    numbers = ("000040-prompt2", "000020-prompt1", "000040-prompt2", "000040-prompt3")
    assert outside == [f"trees/{name}.html" for name in numbers]
    assert "the tree 000040-prompt2" in document
    assert "http-equiv" not in document
    assert "learner.learning_rate" in page.words and "branchgrpo train" in page.words
    assert f'content="{REFRESH}"' in run_page(facts.read(folder, "live"))


def test_alarms_are_sentences(tmp_path: Path) -> None:
    found = alarms(facts.read(written_run(tmp_path)))
    assert found[0] == ("Reward hacking? held-out total +0.2 ± 0.01, colour/ink −0.2 ± 0.01.")
    assert found[1].startswith("Reward hacking? The velocity's norm is 1.5 times")
    assert found[2] == "1 optimiser steps were skipped: the gradient was not finite."
    assert "More than half of all groups were flat" in found[3] and len(found) == 4


def test_bands_are_standard_errors_and_quantiles(tmp_path: Path) -> None:
    found = curves.of_score(facts.read(written_run(tmp_path)), "total", "red")
    assert found.x.tolist() == [0, 20, 40, 60] and found.y.tolist() == [0, 0.2, 0.4, 0.6]
    assert found.low is not None and np.isnan(found.low[0])  # no look tells of it
    assert found.low[1:] == pytest.approx([0.15, 0.35, 0.55])
    low, high = curves.quantiles(np.arange(101.0), [50])  # five on either side: 45 … 55
    assert (low[0], high[0]) == pytest.approx((46, 54))


def test_a_page_shows_some_of_many_checks() -> None:
    assert facts.chosen(5) == [0, 1, 2, 3, 4]
    found = facts.chosen(100)
    assert len(found) == facts.CHECKS and (found[0], found[-1]) == (0, 99)
    gaps = np.diff(found)
    assert gaps.max() - gaps.min() <= 1


def test_a_run_that_has_hardly_begun_has_a_page(tmp_path: Path) -> None:
    folder = written_run(tmp_path)
    for name in ("metrics.jsonl", "looks.jsonl", "run.json"):
        (folder / name).unlink()
    (folder / "config.yaml").write_text("rewards: [{name: gone}]\n")
    (folder / "samples" / "before.npz").write_bytes(b"damaged")
    (folder / "drivers" / "000001.provenance.json").write_text("{")
    page = Parsed(run_page(facts.read(folder)))
    assert page.sections == ["settings"] and "Not known: " in page.words


def test_several_runs_are_on_one_page(tmp_path: Path) -> None:
    folders = [
        written_run(tmp_path, name=f"run{seed}", seed=seed, ended="iterations") for seed in range(3)
    ]
    report(folders[:1])
    path = report(folders)
    assert path.parent == tmp_path and re.fullmatch(r"report-[0-9a-f]{8}\.html", path.name)
    assert report(folders, tmp_path / "mine.html").read_text() == path.read_text()
    page = Parsed(path.read_text())
    assert page.sections == ["reward", "scores", "pictures", "settings"]
    assert f"{folders[0].name}/report.html" in page.addresses
    assert sum(one.endswith(".html") for one in page.addresses) == 1
    assert "run.seed" in page.words and "learner.warmup" not in page.words
    assert page.words.count("0.100 → 0.700") == 3


def test_a_page_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    folder, told = written_run(tmp_path), list[str]()
    with Reports(folder, told.append) as reports:
        reports.write()
        assert f'content="{REFRESH}"' in (folder / "report.html").read_text()
    document = (folder / "report.html").read_text()
    assert "ended by: failed" in document and "http-equiv" not in document and not told
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    (folder / "report.html" / "in-the-way").touch()
    reports.write()
    reports.write()
    assert len(told) == 1 and "report.html cannot be written" in told[0]
    with pytest.raises(UserError, match=r"report: expected a place that can be written"):
        report([folder])
    with pytest.raises(UserError, match=r"report: expected run folders, got .*, which has no"):
        report([tmp_path])
    assert json.loads((folder / "run.json").read_text())["name"] == "flux"
