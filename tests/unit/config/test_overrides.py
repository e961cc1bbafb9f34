"""Keys on the command line: text is text, lists, other components, and `key=value`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.small_trees import QUICKSTART, quickstart

from branchgrpo.algo import noise
from branchgrpo.app import parser as cli
from branchgrpo.config import load as config
from branchgrpo.errors import UserError
from branchgrpo.types import TreeKey

TEXTS = [
    "/scratch/exp #3/runs",
    "blurry #ugly",
    "bad: blurry",
    "2026-11-25",
    "2024-13-45",
    "null",
    "~",
    "true",
    "off",
    "007",
    "1e3",
    "1:30",
]
TEXTS += [
    "",
    " ",
    "[unclosed",
    "{a: b}",
    "- x",
    "'quoted'",
    '"',
    "*star",
    "&and",
    "!bang",
    "%x",
    "@x",
    "a, b",
    "ünïcode",
    "line\nbreak",
    "\\d+",
    "#",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_text(text: str, tmp_path: Path) -> None:
    given = {
        "run.folder": text,
        "model.negative_prompt": text,
        "checkpoint.folder": text,
        "prompts": text,
        "rollout.resource": text,
    }
    found = quickstart(given | {"rewards.0.runtime_env.env_vars.WHAT": text})
    kept = [
        found.run.folder,
        found.model.negative_prompt,
        found.checkpoint.folder,
        found.prompts,
        found.rollout.resource,
    ]
    assert [*kept, found.rewards[0].runtime_env["env_vars"]["WHAT"]] == [text] * 6
    path = tmp_path / "again.yaml"
    path.write_text(config.dump(found), encoding="utf-8")
    assert config.load(path, {"rewards.0.runtime_env": "{}"}).run == found.run


@pytest.mark.parametrize("name", ["2026-11-25", "007", "1.50", "true", "null", "1e3"])
def test_names_that_yaml_would_read_as_something_else(name: str, tmp_path: Path) -> None:
    assert quickstart({"run.name": name, "rewards.0.label": name}).run.name == name
    tree = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    path = tmp_path / "own.yaml"
    path.write_text(
        yaml.safe_dump(tree).replace("name: quickstart", f"name: {name}"), encoding="utf-8"
    )
    if name == "null":  # in a file, null is nothing
        with pytest.raises(UserError, match=r"run\.name: expected a valid string, got None"):
            config.load(path)
    else:
        assert config.load(path).run.name == name


def test_the_type_decides_what_is_text() -> None:
    assert quickstart({"rollout.workers": "auto"}).rollout.workers == "auto"
    assert quickstart({"rollout.workers": "3", "rollout.fork_depth": "0"}).rollout.workers == 3
    assert (
        quickstart({"run.seed": "010", "gates.enabled": "off", "run.export": "none"}).run.seed == 10
    )
    found = quickstart(
        {
            "rewards.0.name": "remote",
            "rewards.0.url": "http://h:1",
            "rewards.0.report": "true,007",
            "rewards.0.train_on": "007",
        }
    ).rewards[0]
    assert (found.report, found.train_on) == (("true", "007"), "007")
    found = quickstart(
        {"rewards": '[{name: remote, url: "http://h:1", report: [007, 2026-11-25, "a,b"]}]'}
    ).rewards[0]
    assert found.report == ("007", "2026-11-25", "a,b")
    assert quickstart({"model.lora_targets": "to_q, to_k"}).model.lora_targets == ("to_q", "to_k")
    assert quickstart({"model.lora_targets": ""}).model.lora_targets == ()
    env = (
        quickstart({"rewards.0.runtime_env": "{env_vars: {A: 007}, pip: [x], n: 3}"})
        .rewards[0]
        .runtime_env
    )
    assert env == {"env_vars": {"A": "007"}, "pip": ["x"], "n": 3}


@pytest.mark.parametrize("text", ["3,6,9,12", "[3, 6, 9, 12]", "3, 6, 9, 12", "[3,6,9,12]"])
def test_lists(text: str) -> None:
    assert quickstart({"method.splits": text}).method.splits == (3, 6, 9, 12)


def test_entries_of_lists() -> None:
    found = quickstart(
        {
            "rewards.1.name": "jpeg",
            "rewards.1.want": "large",
            "pruning.0.name": "width",
            "learner.betas.0": "0.5",
        }
    )
    assert [reward.name for reward in found.rewards] == ["ocr", "jpeg"] and found.rewards[
        1
    ].want == "large"
    # the other one is the default
    assert found.pruning[0].name == "width" and found.learner.betas == (0.5, 0.999)
    found = quickstart(
        {
            "rewards.2.weight": "3",
            "rewards.2.name": "jpeg",
            "rewards.2.label": "b",
            "rewards.1.name": "jpeg",
            "rewards.1.label": "a",
        }
    )
    assert [reward.title for reward in found.rewards] == ["ocr", "a", "b"] and found.rewards[
        2
    ].weight == 3
    with pytest.raises(
        UserError,
        match=r"--rewards\.2\.name: expected a place in the list, 0 … 1 \(1 appends\), got 2$",
    ):
        quickstart({"rewards.2.name": "jpeg"})
    with pytest.raises(UserError, match=r"--rewards\.-1\.name: expected a place in the list"):
        quickstart({"rewards.-1.name": "jpeg"})
    assert quickstart({"pruning": "{name: depth, depths: [3]}"}).pruning[0].depths == (3,)


@pytest.mark.parametrize("turn", [False, True])
def test_another_component_replaces_the_section_whatever_the_order(turn: bool) -> None:
    def load(**texts: str) -> config.Config:
        keys = [(key.replace("__", "."), text) for key, text in texts.items()]
        return quickstart(dict(keys[::-1] if turn else keys))

    found = load(method__name="chains", method__chains="4").method
    assert (
        found == quickstart({"method": "{name: chains, chains: 4}"}).method
        and found.name == "chains"
    )
    same = load(method__name="branchgrpo", method__eta="0.7").method
    assert same.branch_noise == quickstart().method.branch_noise == "antithetic" and same.eta == 0.7
    model = load(model__name="sd3", model__path="/models/sd3", model__height="64").model
    assert (model.name, model.path, model.height) == ("sd3", "/models/sd3", 64)
    with pytest.raises(UserError, match=r"model\.path: missing"):
        load(model__name="sd3")
    reward = load(rewards__0__name="jpeg", rewards__0__want="large").rewards[0]
    assert (reward.name, reward.want) == ("jpeg", "large")
    found = load(
        advantage__name="group",
        loss__name="guard",
        pruning__0__ratio="0.25",
        pruning__0__mode="extremes",
        pruning__0__name="width",
    )
    assert (found.advantage.name, found.loss.name, found.pruning[0].ratio) == (
        "group",
        "guard",
        0.25,
    )
    found = load(method="{name: branchgrpo, splits: [3, 6], leaves: 4}", method__eta="0.9").method
    assert (found.splits, found.eta) == ((3, 6), 0.9)


def test_sections_go_on_top_as_those_of_files() -> None:
    found = quickstart({"learner": "{ranks: 2}"}).learner
    assert (found.ranks, found.learning_rate) == (2, quickstart().learner.learning_rate)


@pytest.mark.parametrize(
    ("splits", "fanout", "leaves"), [((0, 3), 2, 4), ((1,), 5, 5), ((0, 1, 2), 3, 27)]
)
def test_leaves_are_derived(
    splits: tuple[int, ...], fanout: int, leaves: int, tmp_path: Path
) -> None:
    tree = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    tree["method"] = {"name": "branchgrpo", "splits": list(splits), "fanout": fanout}
    tree |= {"preset": None, "advantage": {"name": "depthwise"}, "loss": {"name": "clipped"}}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    found = config.load(path)
    assert found.method.leaves == leaves
    assert config.load(path, {"method.leaves": str(leaves)}) == found
    with pytest.raises(
        UserError, match=f"--method.leaves: .* give {leaves} leaves, expected {leaves + 1}$"
    ):
        config.load(path, {"method.leaves": str(leaves + 1)})


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_the_noise_takes_every_seed_that_a_run_takes(seed: int) -> None:
    found = quickstart({"run.seed": str(seed)}).run.seed
    assert (
        found == seed
        and np.isfinite(noise.draw(found, TreeKey("run", 0, 0, 0), 0, (4,)).numpy()).all()
    )


# The command line


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["train", "run.seed=3"], {"run.seed": "3"}),
        (["run.seed=3"], {"run.seed": "3"}),
        (
            ["train", "prompts=a=b.txt", "--held_out=split:3"],
            {"prompts": "a=b.txt", "held_out": "split:3"},
        ),
        (
            ["train", "--model.negative_prompt", "-1", "--model.path=--x", "--run.folder", ""],
            {"model.negative_prompt": "-1", "model.path": "--x", "run.folder": ""},
        ),
        (["train", "--learner.learning_rate", "-1e-3"], {"learner.learning_rate": "-1e-3"}),
        # no file: the error says what may be meant
        (["train", "lerner.ranks=3"], {"lerner.ranks": "3"}),
        (["compare", "dancegrpo", "--budget", "run.seed=3", "run.seed=4"], {"run.seed": "4"}),
        (
            ["serve-reward", "ocr", "reward.train_on=edit", "--reward.target", "(a)"],
            {"reward.train_on": "edit", "reward.target": "(a)"},
        ),
        (["config", "--preset", "run.x=y"], {}),
        (["config", "some/run.seed=3"], {}),
        (["status", "--run", "run.seed=3"], {}),
    ],
)
def test_options(arguments: list[str], overrides: dict[str, str]) -> None:
    assert cli.parse(arguments)[1] == overrides


def test_a_files_name_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.v=2.yaml").touch()
    assert cli.parse(["train", "run.v=2.yaml"])[0].config == Path("run.v=2.yaml")
    assert cli.parse(["train", "run.v=3.yaml"])[1] == {"run.v": "3.yaml"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--learning_rate", "3"], "did you mean --learner.learning_rate?"),
        (["train", "--promtps", "x"], "did you mean --prompts?"),
        (["train", "--xyzzy"], "unrecognized arguments: --xyzzy"),
    ],
)
def test_options_that_there_are_not(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.parse(arguments)
    assert left.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]


def test_keys_of_served_rewards() -> None:
    found: Any = config.reward(
        "ocr", {"batch": "3", "target": "(a #b)", "report": "exact,edit", "label": "007"}
    )
    assert (found.batch, found.target, found.report, found.label) == (
        3,
        "(a #b)",
        ("exact", "edit"),
        "007",
    )
    for name, keys, line in [
        ("beauty", {}, "serve-reward: expected one of .*ocr.*, got 'beauty'"),
        ("ocr", {"btch": "3"}, "^--reward.btch: unknown key of ocr; did you mean --reward.batch"),
        ("ocr", {"size": "3"}, "^--reward.size: unknown key of ocr"),
        ("ocr", {"batch": "0"}, "^--reward.batch: expected greater than or equal to 1, got 0$"),
        ("ocr", {"target": "("}, "^--reward.target: expected a regular expression"),
        ("remote", {}, "^serve-reward: reward.url: missing: expected address"),
    ]:
        with pytest.raises(UserError, match=line) as caught:
            config.reward(name, keys)
        assert "\n" not in str(caught.value)
