"""Code in the documents: commands are taken by the parsers that would read them, YAML by the
schema, Python compiles."""

from __future__ import annotations

import importlib.util
import json
import re
import statistics
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.documents import BLOCK, PAGES, ROOT, SPAN, Block, blocks, commands, spans

from branchgrpo.app.parser import COMMANDS, parse
from branchgrpo.config import kinds, load
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import config_file, names, presets

pytestmark = pytest.mark.heavy

LANGUAGES = {"", "bash", "yaml", "python", "toml", "mermaid", "text"}
OTHERS = {
    "cd",
    "chmod",
    "do",
    "done",
    "export",
    "for",
    "git",
    "kubectl",
    "mkdir",
    "pip",
    "ray",
    "sbatch",
    "scancel",
    "scp",
    "srun",
    "ssh",
}
OTHERS |= {"branchgrpo", "python", "python3", "pytest", "tensorboard", "uv"}
MENTIONED = {"--rollout", "--learner", "--reward"}
SHOWN = {"reward/leaves"}
"""Histograms of sinks, which metrics.jsonl has not."""
SHELL = blocks("", "bash")


def test_blocks_are_of_known_languages() -> None:
    """What a program prints is `text`."""
    known = blocks(*LANGUAGES)
    assert len(known) > 60
    fences = sum(
        len(re.findall(r"^ *```", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in {ROOT / block.page for block in known}
    )
    assert fences == 2 * len(known)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_are_taken_by_the_program(block: Block) -> None:
    for words in commands(block.text):
        assert words[0] in OTHERS, words
        check(words)


@pytest.mark.parametrize(("page", "text"), list(spans()))
def test_commands_within_texts_are_taken(page: str, text: str) -> None:
    """A command's name alone, or one that ends with an option, is a mention."""
    for words in commands(text):
        if len(words) == 2 and words[0] == "branchgrpo" and words[1][0] != "-":
            assert words[1] in COMMANDS
        else:
            check([*words, "1"] if words[-1] in MENTIONED else words)


def check(words: list[str]) -> None:
    """A command of ours, or of a program of the repository, has options that there are."""
    program, *arguments = words
    if program == "branchgrpo" or words[:2] == ["python", "run.py"]:
        taken(arguments if program == "branchgrpo" else arguments[1:])
    elif program.startswith("python") and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), words
    elif program.startswith("python"):
        text = (ROOT / arguments[0]).read_text(encoding="utf-8")
        for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
            assert f'"{option}"' in text, f"{arguments[0]} has no {option}"
    elif program == "pytest":
        for path in (word for word in arguments if word.startswith("tests/")):
            assert (ROOT / path).exists(), path
    elif program == "sbatch":  # what follows the script is for the run
        (script,) = (word for word in arguments if word.endswith(".sbatch"))
        assert (ROOT / script).is_file(), script
        taken(["train", *arguments[arguments.index(script) + 1 :]])
    elif program == "srun" and any(word.endswith("/branchgrpo") for word in arguments):
        names_it = [word.endswith("/branchgrpo") for word in arguments]
        taken(arguments[names_it.index(True) + 1 :])
    if "python" in arguments:  # as ray job submit has it
        check(arguments[arguments.index("python") :])


def taken(arguments: list[str]) -> None:
    """By the parser; and what it names is there: configs, presets, keys and their values."""
    try:
        found, overrides = parse(arguments)
    except SystemExit as stop:
        assert stop.code == 0, arguments  # --help
        return
    for method in getattr(found, "methods", None) or ():
        assert str(method) in presets() or (ROOT / method).is_file(), method
    preset = getattr(found, "preset", None)
    assert preset is None or preset in presets(), preset
    config = str(getattr(found, "config", None) or "quickstart")
    if config not in names():
        config = "quickstart"  # a file of the reader's own
    if found.command == "serve-reward":
        load.reward(
            found.name, {key.removeprefix("reward."): one for key, one in overrides.items()}
        )
    else:
        plain = {key: text for key, text in overrides.items() if "./" not in text}
        load.load(config_file(config), plain, preset)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_fits_the_schema(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole config, or sections, which then lie on the quick start."""
    monkeypatch.chdir(tmp_path)
    for file, name in re.findall(r"\./(\w+\.py):(\w+)", block.text):
        (tmp_path / file).write_text(f"def {name}(images, samples):\n    return [0.0]\n")
    text = block.text.replace("…", "some")
    for name in re.findall(r"base: (\w+\.yaml)", text):
        (tmp_path / name).write_text("base: quickstart\n")
    keys = yaml.safe_load(text)
    assert isinstance(keys, dict)
    base = "" if "base" in keys else "base: quickstart\n"
    (tmp_path / "own.yaml").write_text(base + text, encoding="utf-8")
    load.load(tmp_path / "own.yaml")


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


def test_the_notebook_compiles_and_shows_what_came_out() -> None:
    found = json.loads((ROOT / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        compile("".join(cell["source"]), "notebook", "exec")
    assert sum(bool(cell["outputs"]) for cell in cells) >= 4
    texts = ["".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\(([^)#]+)", text)]
    assert len(links) >= 6 and all((ROOT / "examples" / link).is_file() for link in links)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_that_are_named_are_of_the_schema(page: Path) -> None:
    if page.name == "CHANGELOG.md":  # of keys of the past
        return
    keys = set(known_keys())
    sections = {key.partition(".")[0] for key in keys if "." in key}
    found = [
        re.sub(r"\.\d+", "", key)
        for span in SPAN.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
        for key in re.findall(r"(?<![\w./-])(?:--)?([a-z_]+(?:\.[a-z_0-9]+)+)(?![\w/]*\()", span)
    ]
    other = (
        ".py",
        ".yaml",
        ".json",
        "deploy.generate",
        "rewards.channel",
    )  # the last: of an example
    named = [key for key in found if key.partition(".")[0] in sections and not key.endswith(other)]
    assert not [key for key in named if key not in keys]


@cache
def known_keys() -> tuple[str, ...]:
    """Keys of all components, dotted; places in lists left out."""
    return tuple(_keys(Config, ""))


def _keys(model: Any, above: str) -> Iterator[str]:
    for key, kind in kinds.fields(model).items():
        yield above + key
        entry = kinds.entries(kind)
        inner = kind if entry is None else entry
        if kinds.is_section(inner) and above.count(".") < 3:  # rewards may hold rewards
            names = kinds.names(inner)
            table = kinds.table(inner)
            parts = [table.find(name) for name in names] if table else [kinds.chosen(inner, None)]
            for part in parts:
                yield from _keys(part, f"{above}{key}.")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_that_are_named_are_of_the_run_folder(page: Path) -> None:
    """As update/kl: the table of docs/run-folder.md has them, some by the last part alone."""
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    figures: set[str] = set()
    for row in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE):
        first = ""
        for word in re.findall(r"`([^`]+)`", row):
            first = word.partition("/")[0] if "/" in word else first
            figures.add(word if "/" in word else f"{first}/{word}")
    kinds_of = {figure.partition("/")[0] for figure in figures if figure.islower()} - {"samples"}
    named = [
        match[1]
        for span in SPAN.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
        if (match := re.match(r"([a-z_]+/[a-z_0-9]+)(?: [<>].*)?$", span))
    ]
    assert not [
        one for one in named if one.partition("/")[0] in kinds_of and one not in figures | SHOWN
    ]


def test_hours_of_the_papers_rows_are_those_of_the_configs() -> None:
    text = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(paper/[\w-]+)` \| [^|]+ \| (\d+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert {name for name, *_ in rows} == {name for name in names() if name.startswith("paper/")}
    for name, seconds, hours in rows:
        file = config_file(name)
        assert f"; {seconds} s on H100s, computed" in file.read_text(encoding="utf-8"), name
        counted = int(seconds) * load.load(file).run.iterations / 3600
        assert float(hours) == pytest.approx(counted, abs=0.051), name
    total = sum(int(seconds) for _, seconds, _ in rows) * 300 / 3600
    assert f"The seven rows are {total:.0f} hours" in text


def test_sizes_of_configs_for_one_gpu_are_those_of_the_page_on_gpus() -> None:
    text = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
    counted = (ROOT / "docs" / "gpus.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \| [^|]+ \| (\d+) GB[;,] (\d+) s", text, re.MULTILINE)
    assert len(rows) == 4
    for name, size, seconds in rows:
        row = re.search(
            rf"^\| `{re.escape(name)}` \| 1 \| ([\d.]+) .* (\d+) \| 0 % \|$", counted, re.M
        )
        assert row and (round(float(row[1])), row[2]) == (int(size), seconds), name


def test_advantages_of_the_tree_that_is_shown() -> None:
    """Each depth by itself: (score − mean) / unbiased std."""
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    for end in (r'\["split, mean ([\d.]+)', r'\(\["picture, scored ([\d.]+)'):
        found = re.findall(r'\|"([^"]+)"\| \w+' + end, text)
        shown = [(float(told.replace("−", "-")), float(score)) for told, score in found]
        scores = [score for _, score in shown]
        assert len(scores) in (2, 4)
        for told, score in shown:
            expected = (score - statistics.mean(scores)) / statistics.stdev(scores)
            assert told == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_is_read(block: Block) -> None:
    assert tomllib.loads(block.text)
