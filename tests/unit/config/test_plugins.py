"""Components of one's own: from a file, from an installed package, registered; wherever a config
goes."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.records import records
from support.small_trees import QUICKSTART, quickstart

from branchgrpo.config import load as config
from branchgrpo.config import references, registry
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Resources, RewardOptions

MINE = '''
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from pydantic import BaseModel, Field
from branchgrpo.algo.methods.chains import ChainMethod
from branchgrpo.rewards.base import RewardOptions, Scorer

@dataclass
class Limits:
    low: float = 0.0

class Inner(BaseModel):
    depth: int = 1

def brightness(images, samples):
    """Mean of a picture, for prompts that say so."""
    return [np.asarray(i).mean() if "light" in s.prompt else 0 for i, s in zip(images, samples)]

class Scaled(RewardOptions):
    """Brightness times a factor."""
    factor: int = Field(1, ge=0, description="the factor")
    inner: Inner = Field(Inner(), description="a section of its own")

    def build(self, resources):
        return Scales(self)

class Scales(Scorer):
    def __init__(self, options):
        self.options = options

    def score(self, pixels, samples):
        return {"score": self.options.factor * pixels.mean((1, 2, 3, 4), dtype=np.float32)}

class Empty(RewardOptions):
    """Builds nothing."""

class FewChains(ChainMethod):
    """A method that has the name of its parent."""

number = 3
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, in the folder that we are in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    return tmp_path / "mine.py"


def with_rewards(folder: Path, *rewards: dict[str, Any]) -> Path:
    """The quick start with these rewards, as a file in this folder."""
    tree = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(tree | {"rewards": list(rewards)}), encoding="utf-8")
    return path


def message(*arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        config.load(*arguments)
    return str(caught.value)


def scores(loaded: Config, value: int = 9) -> list[float]:
    pixels = np.full((2, 1, 4, 4, 3), value, np.uint8)
    found = loaded.rewards[0].build(Resources()).score(pixels, records(["light", "dark"]))
    return [float(score) for score in found["score"]]


def test_a_function_of_a_file_is_a_reward(mine: Path) -> None:
    loaded = quickstart({"rewards.0.name": "./mine.py:brightness"})
    assert loaded.metric == "brightness/score" and scores(loaded) == [9, 0]


def test_a_class_of_a_file_has_keys_of_its_own(mine: Path) -> None:
    loaded = quickstart(
        {
            "rewards.0.name": "./mine.py:Scaled",
            "rewards.0.factor": "3",
            "rewards.0.inner.depth": "4",
            "rewards.0.label": "bright",
        }
    )
    assert loaded.metric == "bright/score" and scores(loaded) == [27, 27]
    assert loaded.rewards[0].inner.depth == 4  # type: ignore[attr-defined]


def test_a_list_names_one_by_one(mine: Path) -> None:
    rewards = "[{name: ./mine.py:brightness}, {name: ./mine.py:Scaled, factor: 2}, {name: jpeg}]"
    titles = [reward.title for reward in quickstart({"rewards": rewards}).rewards]
    assert titles == ["brightness", "Scaled", "jpeg"]


def test_a_file_is_relative_to_the_config_that_names_it(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_rewards(mine.parent, {"name": "./mine.py:brightness"})
    (mine.parent / "elsewhere").mkdir()
    monkeypatch.chdir(mine.parent / "elsewhere")
    loaded = config.load(path)
    assert loaded.rewards[0].name == f"{mine}:brightness"
    # on the command line it is relative to where one is
    assert config.load(path, {"rewards.0.name": "../mine.py:brightness"}) == loaded


def test_the_resolved_config_is_read_back_anywhere(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = quickstart(
        {
            "rewards.0.name": "./mine.py:Scaled",
            "rewards.0.factor": "3",
            "method.name": "./mine.py:FewChains",
            "method.chains": "4",
        }
    )
    (mine.parent / "run").mkdir()
    monkeypatch.chdir(mine.parent / "run")
    Path("config.yaml").write_text(config.dump(loaded), encoding="utf-8")
    assert config.load(Path("config.yaml")) == loaded
    assert loaded.method.name == f"{mine}:FewChains" and loaded.method.called == "FewChains"


def test_a_file_travels_to_processes_that_do_not_have_it(mine: Path) -> None:
    loaded = quickstart({"rewards.0.name": "./mine.py:Scaled", "rewards.0.inner.depth": "4"})
    assert pickle.loads(pickle.dumps(loaded)) == loaded
    mine.with_name("config.pkl").write_bytes(pickle.dumps(loaded))
    mine.unlink()
    code = (
        "import pickle, sys, numpy as np; from branchgrpo.rewards.base import Resources; "
        "from branchgrpo.types import Sample; "
        "config = pickle.load(open('config.pkl', 'rb')); "
        "reward = config.rewards[0]; pixels = np.full((1, 1, 2, 2, 3), 5, np.uint8); "
        "found = reward.build(Resources()).score(pixels, [Sample(prompt='')]); "
        "print(reward.inner.depth, found, reward.name); "
        "assert pickle.loads(pickle.dumps(config)) == config"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split()[0] == "4" and "5." in done.stdout and str(mine) in done.stdout


def test_where_a_file_cannot_be_imported_only_its_use_fails(mine: Path) -> None:
    """A rollout worker needs no reward, and need not have what it imports."""
    mine.write_text(f"{MINE}import sys\nif 'pickle' in sys.argv:\n    import gone\n")
    loaded = quickstart(
        {"rewards.0.name": "./mine.py:Scaled", "rewards.0.weight": "3", "rewards.0.factor": "2"}
    )
    mine.with_name("config.pkl").write_bytes(pickle.dumps(loaded))
    code = (
        "import pickle; config = pickle.load(open('config.pkl', 'rb')); "
        "reward = config.rewards[0]; print(reward.title, reward.factor, config.credit.weights)\n"
        "for use in (lambda: reward.build(1, 'cpu'), lambda: reward.reported()):\n"
        "    try: use()\n"
        "    except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "pickle"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    line = (
        f"UserError rewards: {mine} cannot be imported: line {MINE.count(chr(10)) + 3}: "
        "ModuleNotFoundError: No module named 'gone': what it imports must be on every worker"
    )
    assert done.stdout.splitlines() == ["Scaled 2 (3.0,)", line, line]


def test_a_file_that_was_changed_is_read_again(mine: Path) -> None:
    texts = {"rewards.0.name": "./mine.py:Scaled"}
    before = quickstart(texts)
    mine.write_text(MINE.replace("self.options.factor *", "2 *"), encoding="utf-8")
    assert (scores(before), scores(quickstart(texts))) == ([9, 9], [18, 18])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./no.py:f", "expected a Python file, found nothing at FOLDER/no.py"),
        ("./mine.py", "expected ./FILE.py:NAME or package.module:NAME, got './mine.py'"),
        (
            "./mine.py:brightnes",
            "expected brightnes in FOLDER/mine.py, which has Limits, Inner, brightness, Scaled, "
            "Scales, Empty, FewChains",
        ),
        (
            "./mine.py:Limits",
            "expected a subclass of RewardOptions or a function f(images, samples), got the class "
            "Limits at FOLDER/mine.py:Limits",
        ),
        (
            "./mine.py:number",
            "expected a subclass of RewardOptions or a function f(images, samples), got int 3 at "
            "FOLDER/mine.py:number",
        ),
        ("./mine.py:Empty", "expected a method build of Empty at FOLDER/mine.py:Empty"),
        ("./bad.py:f", "FOLDER/bad.py cannot be imported: line 2: NameError: name 'zz' is not"),
        ("./syntax.py:f", "FOLDER/syntax.py cannot be imported: line 1: SyntaxError: '(' was"),
        ("./leaves.py:f", "FOLDER/leaves.py cannot be imported: line 1: SystemExit: 3"),
        (
            "./beside.py:f",
            "FOLDER/beside.py cannot be imported: line 1: ModuleNotFoundError: No module named "
            "'besides' (besides lies beside it, but only the file itself travels to the workers: "
            "put both in one file, or install them and name package.module:NAME)",
        ),
        (
            "./one.py:f",
            "FOLDER/one.py:f: expected a function f(images, samples), got f(x)",
        ),
        ("no.such:f", "expected an installed module no.such, found no no"),
        ("json.no:f", "expected an installed module json.no, found no json.no"),
        ("json:f", "expected f in json, which has "),
    ],
)
def test_what_is_no_component_is_one_line(mine: Path, name: str, words: str) -> None:
    folder = mine.parent
    for file, text in {
        "bad.py": "x = 1\nzz\n",
        "syntax.py": "x = (\n",
        "leaves.py": "raise SystemExit(3)\n",
        "beside.py": "import besides\n",
        "besides.py": "",
        "one.py": "def f(x): ...\n",
    }.items():
        (folder / file).write_text(text, encoding="utf-8")
    found = message(QUICKSTART, {"rewards.0.name": name, "rewards.0.factor": "3"})
    assert found.startswith(f"--rewards.0.name: {words.replace('FOLDER', str(folder))}"), found
    assert "\n" not in found
    # in a file it has its line
    path = with_rewards(folder, {"name": name})
    line = path.read_text(encoding="utf-8").splitlines().index(f"- name: {name}") + 1
    found = message(path)
    assert found.startswith(f"{path}:{line}: rewards.0.name: "), found
    assert words.replace("FOLDER", str(folder)) in found and "\n" not in found


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("factor", "-1", "--rewards.0.factor: expected greater than or equal to 0, got -1"),
        (
            "facto",
            "1",
            "--rewards.0.facto: unknown key of FILE:Scaled; did you mean --rewards.0.factor?",
        ),
        ("train_on", "x", "--rewards.0.train_on: unknown key of FILE:Scaled, a key of "),
    ],
)
def test_keys_of_ones_own_are_checked_as_ours(mine: Path, key: str, value: str, words: str) -> None:
    found = message(QUICKSTART, {"rewards.0.name": "./mine.py:Scaled", f"rewards.0.{key}": value})
    assert found.startswith(words.replace("FILE", str(mine))), found


def test_the_components_of_one_table_are_none_of_another(mine: Path) -> None:
    found = message(QUICKSTART, {"method.name": "./mine.py:Scaled"})
    assert found == (
        "--method.name: expected a subclass of MethodOptions, got the class Scaled at "
        f"{mine}:Scaled"
    )


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with entry points."""
    site = tmp_path / "site"
    (site / "bright-1.0.dist-info").mkdir(parents=True)
    (site / "bright").mkdir()
    (site / "bright" / "__init__.py").write_text("", encoding="utf-8")
    (site / "bright" / "parts.py").write_text(MINE, encoding="utf-8")
    (site / "bright-1.0.dist-info" / "METADATA").write_text("Name: bright\nVersion: 1.0\n")
    (site / "bright-1.0.dist-info" / "entry_points.txt").write_text(
        "[branchgrpo.rewards]\nbright = bright.parts:Scaled\nbroken = bright.parts:Nothing\n"
        "ocr = bright.parts:Scaled\n[branchgrpo.methods]\nfew = bright.parts:FewChains\n"
    )
    monkeypatch.syspath_prepend(str(site))
    invalidate_caches()
    references.installed.cache_clear()
    yield site
    references.installed.cache_clear()


def test_entry_points_are_named_as_ours(installed: Path) -> None:
    loaded = quickstart({"rewards.0.name": "bright", "rewards.0.factor": "2", "method.name": "few"})
    assert (loaded.metric, loaded.method.name) == ("bright/score", "few")
    assert scores(loaded) == [18, 18] and pickle.loads(pickle.dumps(loaded)) == loaded
    assert quickstart().rewards[0].name == "ocr"  # a shipped name stays ours
    found = message(QUICKSTART, {"rewards.0.name": "brigt"})
    assert found.endswith("bright, broken, got 'brigt'; did you mean bright?")
    found = message(QUICKSTART, {"rewards.0.name": "broken"})
    assert found.startswith("--rewards.0.name: expected Nothing in bright.parts, which has ")


def test_the_schema_has_what_is_installed(installed: Path) -> None:
    points = installed / "bright-1.0.dist-info" / "entry_points.txt"
    with pytest.raises(UserError, match=r"^rewards: broken: expected Nothing in bright\.parts"):
        Config.model_json_schema()
    points.write_text(points.read_text().replace("broken = bright.parts:Nothing\n", ""))
    references.installed.cache_clear()
    schema = Config.model_json_schema()
    options = schema["properties"]["rewards"]["items"]
    assert options["discriminator"]["mapping"]["bright"] in json.dumps(options["oneOf"])
    ours = [one for one in schema["$defs"].values() if "factor" in one.get("properties", {})]
    assert [one["properties"]["name"]["const"] for one in ours] == ["bright"]


def test_a_package_is_named_by_module_and_class(installed: Path) -> None:
    loaded = quickstart({"rewards.0.name": "bright.parts:brightness"})
    assert loaded.rewards[0].name == "bright.parts:brightness" and scores(loaded) == [9, 0]


def test_two_packages_with_one_name_are_one_line(installed: Path) -> None:
    (installed / "other-1.0.dist-info").mkdir()
    (installed / "other-1.0.dist-info" / "METADATA").write_text("Name: other\nVersion: 1.0\n")
    (installed / "other-1.0.dist-info" / "entry_points.txt").write_text(
        "[branchgrpo.rewards]\nbright = json:loads\n"
    )
    found = message(QUICKSTART, {"rewards.0.name": "bright"})
    assert "expected different names of entry points, got bright twice" in found


@pytest.fixture
def registered() -> Any:
    yield registry.register
    for table in registry.TABLES.values():
        table.registered.clear()


def test_what_is_registered_is_named_as_ours(registered: Any, mine: Path) -> None:
    registered("rewards", "pale", lambda images, samples: [255 - 9] * len(images))
    assert scores(quickstart({"rewards.0.name": "pale"})) == [246, 246]
    registered("rewards", "pale", "./mine.py:Scaled")  # again: replaces
    loaded = quickstart({"rewards.0.name": "pale", "rewards.0.factor": "2"})
    assert (scores(loaded), loaded.metric) == ([18, 18], "pale/score")
    assert "pale" in registry.REWARDS.names()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("reward", "x", len), "register: expected one of rewards, models, methods, advantage"),
        (("rewards", "a b", len), "register: expected a name of letters, digits, . _ and -"),
        (("rewards", "./x.py:f", len), "register: expected a name of letters"),
        (("rewards", "ocr", len), "register: expected a name that is free, got 'ocr'"),
        (("rewards", "x", 3), "register: x: expected a subclass of RewardOptions or a function"),
        (("rewards", "x", RewardOptions), "register: x: expected a subclass of RewardOptions"),
        (("loss", "x", print), "register: x: expected a subclass of LossOptions, got"),
        (("rewards", "x", "no.such:f"), "register: x: expected an installed module no.such"),
    ],
)
def test_what_cannot_be_registered(registered: Any, arguments: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        registered(*arguments)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_serve_reward_takes_ones_own(mine: Path) -> None:
    served = config.reward("./mine.py:Scaled", {"factor": "4"})
    assert served.title == "Scaled" and served.factor == 4  # type: ignore[attr-defined]
    assert config.reward("./mine.py:brightness", {"label": "b"}).title == "b"
    for name, texts, words in (
        ("./no.py:f", {}, "serve-reward: expected a Python file, found nothing at"),
        ("./mine.py:Scaled", {"facto": "4"}, "--reward.facto: unknown key of"),
        ("jpg", {}, "serve-reward: expected one of aesthetic"),
    ):
        with pytest.raises(UserError) as caught:
            config.reward(name, texts, "reward.")
        assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return [1.0]", "f: expected 2 scores, got 1"),
        ("return None", "f: expected a list of 2 numbers, got NoneType"),
        ("return [None, None]", "f: expected a list of 2 numbers, got a list of NoneType"),
    ],
)
def test_a_function_that_gives_no_scores(mine: Path, body: str, words: str) -> None:
    mine.write_text(f"def f(images, samples): {body}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        scores(quickstart({"rewards.0.name": "./mine.py:f"}))


def test_a_function_sees_videos_as_lists_of_frames(mine: Path) -> None:
    mine.write_text(
        "def f(images, samples):\n"
        "    return [len(v) * v[0].width + v[1].getpixel((0, 0))[2] for v in images]\n",
        encoding="utf-8",
    )
    scorer = quickstart({"rewards.0.name": "./mine.py:f"}).rewards[0].build(Resources())
    pixels = np.zeros((1, 3, 4, 5, 3), np.uint8)
    pixels[0, 1, 0, 0, 2] = 7
    assert scorer.score(pixels, records([""]))["score"].tolist() == [3 * 5 + 7]


def test_the_rewards_of_the_documents_work(mine: Path) -> None:
    page = (QUICKSTART.parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    mine.with_name("warmth.py").write_text("\n\n".join(blocks), encoding="utf-8")
    (section,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    path = with_rewards(mine.parent, *yaml.safe_load(section)["rewards"])
    assert [reward.title for reward in config.load(path).rewards] == ["ocr", "warm"]
    pixels = np.zeros((2, 1, 4, 4, 3), np.uint8)
    pixels[1, ..., 2] = 200
    for name, keys, expected in (
        ("warmth", {}, [0, 0]),
        ("Warmth", {"rewards.0.channel": "2"}, [0, 200]),
    ):
        loaded = quickstart({"rewards.0.name": f"./warmth.py:{name}", **keys})
        found = loaded.rewards[0].build(Resources()).score(pixels, records(["", ""]))
        assert found["score"].tolist() == expected
