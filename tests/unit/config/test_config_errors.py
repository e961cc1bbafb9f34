"""Mistakes in a config: all of them, a line each, with file and line or option, and what may be
meant."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
import yaml
from support.small_trees import QUICKSTART, quickstart

from branchgrpo import rewards
from branchgrpo.config import load as config
from branchgrpo.errors import UserError

OWN = """preset: branchgrpo
run:
  sed: 3
  name: a/b
model: {name: flux, path: "embedded:tiny-flux", heigth: 3}
prompts: embedded:train
held_out: embedded:heldout
rewards:
  - name: ocr
    train_on: edit
  - {name: jpg}
  - name: remote
  -
    name: ocr
    target: number
learner:
  betas: 3
  rnks: 2
method:
  fanout: 3
  leaves: 16
  eta: -1
lerner: {ranks: 2}
learning_rate: 3
"""


def mistakes(
    path: Path, content: str, texts: dict[str, str] | None = None, preset: str | None = None
) -> list[str]:
    """Lines of the error, with FILE for the path PRESETS for their folder, REWARDS for all their
    names."""
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        config.load(path, texts, preset)
    return (
        str(caught.value)
        .replace(str(path), "FILE")
        .replace(str(config.PRESETS), "PRESETS")
        .replace(", ".join(rewards.REGISTRY), "REWARDS")
        .splitlines()
    )


def test_all_mistakes_at_once_each_with_its_line(tmp_path: Path) -> None:
    texts = {
        "learner.max_rank": "2",
        "rollout.workers": "many",
        "evaluation.prompts": "1",
        "modle.path": "x",
        "pruning": "[{name: hedge}]",
    }
    found = mistakes(tmp_path / "own.yaml", OWN, texts)
    assert sorted(found) == sorted(
        [
            "--modle.path: unknown key; did you mean --model.path?",
            "--learner.max_rank: unknown key; did you mean --learner.max_ranks?",
            "FILE:3: run.sed: unknown key; did you mean run.seed?",
            "FILE:4: run.name: expected text that matches '^[A-Za-z0-9._-]+$', got 'a/b'",
            "FILE:5: model.heigth: unknown key of flux; did you mean model.height?",
            "FILE:11: rewards.1.name: expected one of REWARDS, got 'jpg'; did you mean jpeg?",
            "FILE:12: rewards.2.url: missing: expected address of the server, "
            "http(s)://HOST:PORT, with a path where a gateway needs one",
            "FILE:15: rewards.3.target: expected a regular expression with a group, got 'number'",
            "FILE:17: learner.betas: expected a list, got 3",
            "FILE:18: learner.rnks: unknown key; did you mean learner.ranks?",
            "FILE:22: method.eta: expected greater than 0, got -1",
            "FILE:21: method.leaves: 4 splits of fanout 3 give 81 leaves, expected 16",
            "FILE:23: lerner: unknown key; did you mean learner?",
            "FILE:24: learning_rate: unknown key; did you mean learner.learning_rate?",
            "--rollout.workers: expected 'auto' or a valid integer, got 'many'",
            "--evaluation.prompts: expected greater than or equal to 2, got 1",
            "--pruning: pruning.0.name: expected one of width, depth, steps, got 'hedge'",
        ]
    )


def test_keys_that_do_not_go_together_are_all_named(tmp_path: Path) -> None:
    content = (
        QUICKSTART.read_text(encoding="utf-8")
        .replace("workers: 2", "workers: 99")
        .replace("prompts_between: 64", "diversity: 1\n  weights: ema")
    )
    found = mistakes(
        tmp_path / "own.yaml", content, {"evaluation.metric": "ocr/beauty", "sampling.steps": "4"}
    )
    places = [line.partition(": expected ")[0].partition(": ema")[0] for line in found]
    own = content.splitlines()
    diversity, weights, workers = (
        1 + next(i for i, line in enumerate(own) if key in line)
        for key in ("diversity: 1", "weights: ema", "workers: 99")
    )
    assert places == [
        "PRESETS/nft-flash.yaml:3: method.splits",
        f"FILE:{diversity}: evaluation.diversity",
        f"FILE:{weights}: evaluation.weights",
        f"FILE:{workers}: rollout.workers",
        "--evaluation.metric",
    ]


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (
            {"run.learning_rate": "1"},
            "--run.learning_rate: unknown key; did you mean --learner.learning_rate?",
        ),
        ({"learner.sampling_steps": "1"}, "--learner.sampling_steps: unknown key"),
        ({"method.chains": "8"}, "--method.chains: unknown key of branchgrpo, a key of chains"),
        (
            {"rewards.0.traim_on": "x"},
            "--rewards.0.traim_on: unknown key of ocr; did you mean --rewards.0.train_on?",
        ),
        (
            {"async.staleness": "1"},
            "--async.staleness: unknown key; did you mean --async.max_staleness?",
        ),
        (
            {"method.window.sise": "1"},
            "--method.window.sise: unknown key; did you mean --method.window.size?",
        ),
        (
            {"method.name": "chain"},
            "--method.name: expected one of branchgrpo, chains, trunk, tempflow, treegrpo, got "
            "'chain'; did you mean chains?",
        ),
        ({"xyzzy.plugh": "1"}, "--xyzzy.plugh: unknown key"),
        ({"prompts.deeper": "1"}, "--prompts.deeper: unknown key"),
        (
            {"run.export": "pipelin"},
            "--run.export: expected 'pipeline', 'transformer', 'lora' or 'none', got "
            "'pipelin'; did you mean pipeline?",
        ),
        ({"gates.enabled": "perhaps"}, "--gates.enabled: expected a valid boolean, got 'perhaps'"),
        (
            {"method.splits": "3,x"},
            "--method.splits: method.splits.1: expected a valid integer, got 'x'",
        ),
        ({"method.splits": "[3,"}, "--method.splits: expected a list, a,b or [a, b], got '[3,'"),
        ({"learner": "7"}, "--learner: expected a section of keys, got 7"),
        ({"rewards": "[]"}, "--rewards: expected at least 1 item, got []"),
    ],
)
def test_options_are_named(texts: dict[str, str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        quickstart(texts)
    assert str(caught.value) == line


def test_a_preset_of_ones_own_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "preset: branchgrpo\nloss:\n  clip_rage: 3\n", encoding="utf-8"
    )
    content = yaml.safe_dump(
        yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
        | {"preset": str(tmp_path / "mine.yaml")}
    )
    wanted = [
        f"{tmp_path}/mine.yaml:3: loss.clip_rage: unknown key of clipped; did you mean "
        "loss.clip_range?"
    ]
    assert (
        mistakes(tmp_path / "own.yaml", content)
        == wanted
        == mistakes(tmp_path / "own.yaml", content, preset=str(tmp_path / "mine.yaml"))
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            "learner: {ranks: 2}\nrun: {}\nlearner: {ranks: 3}\n",
            "FILE:3: learner: expected each key once, got it twice, in lines 1 and 3",
        ),
        (
            "run:\n  seed: 1\n  name: x\n  seed: 2\n",
            "FILE:4: seed: expected each key once, got it twice, in lines 2 and 4",
        ),
        (
            "rewards:\n - runtime_env:\n     env_vars: {A: 1, B: 2,\n        A: 3}\n",
            "FILE:4: A: expected each key once, got it twice, in lines 3 and 4",
        ),
        (
            "run: &a\n  x: *a\n",
            "FILE:2: expected YAML that does not hold itself, got an alias of what it is in",
        ),
        ("run: !!set {a}\n", "FILE:1: expected plain YAML, got the tag !!set"),
        ("run: 3\n ranks: 2\n", "FILE:2: expected YAML, but mapping values are not allowed here"),
        ("run: *nothing\n", "FILE:1: expected YAML, but found undefined alias 'nothing'"),
        ("- a\n", "config: expected a mapping of sections in FILE, got list"),
        ("[" * 3000, "config: expected a YAML file, cannot read FILE: it is nested too deeply"),
    ],
)
def test_yaml_that_is_no_config(content: str, line: str, tmp_path: Path) -> None:
    assert mistakes(tmp_path / "own.yaml", content) == [line]


def test_anchors_and_merge_keys_are_yaml_too(tmp_path: Path) -> None:
    tree = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    rest = yaml.safe_dump(
        {key: value for key, value in tree.items() if key not in ("rollout", "reward_workers")}
    )
    path = tmp_path / "own.yaml"
    path.write_text(
        "rollout: &role {cpus: 0.25, threads: 3}\nreward_workers: {<<: *role, threads: 2}\n" + rest,
        encoding="utf-8",
    )
    found = config.load(path, {"rollout.threads": "4"})
    assert (
        found.rollout.cpus,
        found.rollout.threads,
        found.reward_workers.cpus,
        found.reward_workers.threads,
    ) == (0.25, 4, 0.25, 2)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(QUICKSTART.read_text(encoding="utf-8"), encoding=encoding)
    with pytest.raises(UserError, match=r"own\.yaml is UTF-16: save as UTF-8$"):
        config.load(path)
    path.write_bytes(codecs.BOM_UTF8 + QUICKSTART.read_bytes())
    assert config.load(path) == config.load(QUICKSTART)
