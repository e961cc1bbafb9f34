"""Every YAML file under configs/ is a config as it stands, or a preset that makes one; what its
comment counts is what its plan has."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.presets import group
from support.small_trees import QUICKSTART

from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import topology
from branchgrpo.config import load as config
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import config_file, names, presets
from branchgrpo.errors import UserError

CONFIGS = QUICKSTART.parent
LARGE = [name for name in names() if name != "quickstart"]
COUNTS = re.compile(
    r"^# An iteration: (\d+) prompts × (\d+) (?:pictures|videos), (\d+) forwards to grow them, "
    r"(\d+) trained states",
    re.MULTILINE,
)


def failures(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """All YAML files below a folder, and those that do not load, with why."""
    files = sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")])
    found = {}
    for path in files:
        try:
            if path.parent.name != "methods":
                config.load(path)
            else:
                config.load(folder / "quickstart.yaml", preset=str(path))
        except UserError as error:
            found[path.relative_to(folder).as_posix()] = str(error)
    return files, found


def test_all_shipped_configs_load() -> None:
    files, found = failures(CONFIGS)
    assert not found
    # none is left out, and none lies where no command finds it
    named = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in files]
    methods = [name for name in named if name.startswith("methods/")]
    assert sorted(name.removeprefix("methods/") for name in methods) == presets()
    assert sorted(set(named) - set(methods)) == sorted(names())
    assert len(names()) >= 19 and len(presets()) >= 22


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("quickstart.yaml", "learner:", "lerner:", "lerner: unknown key; did you mean"),
        ("methods/tempflow.yaml", "name: tempflow", "name: tempflo", "did you mean tempflow?"),
        ("methods/dancegrpo-tf06.yaml", "chains:", "chain:", "unknown key of chains"),
        ("paper/mix.yaml", "run:", "rum:", "rum: unknown key"),
    ],
)
def test_one_that_does_not_load_is_reported(
    file: str, old: str, new: str, words: str, tmp_path: Path
) -> None:
    folder = tmp_path / "configs"
    shutil.copytree(CONFIGS, folder)
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    _, found = failures(folder)
    assert file in found and words in found[file], found


def counted(loaded: Config) -> tuple[int, int, int, int]:
    """Prompts, leaves of each, rows sent through the model to grow them, and states whose velocity
    training computes, the mean over the run."""
    rollout, forwards, parents, leaves = loaded.rollout, set[int](), list[int](), set[int]()
    credit = loaded.model_copy(update={"combine": "reward"}).credit
    for iteration in range(0, loaded.run.iterations, 10):
        plan = loaded.method.plan(iteration, static(loaded.sampling.steps, 3.0), loaded.run.seed)
        topo = topology(plan)
        masks = [one.keep for one in credit.assign(plan, group(plan), iteration, {})]
        trees = len(masks) * rollout.trees_per_prompt
        forwards.add(trees * len(np.unique(topo.parent[1:])))
        leaves.add(trees * topo.leaves)
        trained = sum(len(np.unique(topo.parent[mask])) for mask in masks)
        parents.append(trained * rollout.trees_per_prompt)
    (rows,), (pictures,) = forwards, leaves
    prompts = rollout.prompts
    return prompts, pictures, prompts * rows, round(prompts * float(np.mean(parents)))


@pytest.mark.parametrize("name", LARGE)
def test_counts_in_its_comment_are_the_plans(name: str) -> None:
    path = config_file(name)
    (told,) = COUNTS.findall(path.read_text(encoding="utf-8"))
    assert tuple(map(int, told)) == counted(config.load(path))


@pytest.mark.parametrize("name", LARGE)
def test_roles_fill_whole_nodes(name: str) -> None:
    """One GPU, or nodes of eight; in the shared layout every GPU has a rank and a reward worker."""
    loaded = config.load(config_file(name))
    rollout, reward, learner = loaded.rollout, loaded.reward_workers, loaded.learner
    wanted = [
        (role.gpus, count)
        for role, count in (
            (rollout, rollout.begun),
            (reward, reward.workers * len(loaded.reward_groups)),
            (learner, learner.ranks),
        )
    ]
    total = sum(gpus * count for gpus, count in wanted)
    shared = loaded.cluster.layout == "shared"
    assert total == pytest.approx(1 if name.endswith("-1gpu") else 32 if not shared else 8)
    if shared:
        assert not rollout.begun and learner.gpus + reward.gpus == pytest.approx(1)
        assert reward.workers == learner.ranks and 2 * learner.gpus > 1
    else:
        assert loaded.async_.max_staleness == 1
    assert rollout.prompts % max(rollout.begun, learner.ranks if shared else 1) == 0


def test_the_bench_pair_is_one_workload() -> None:
    chain, tree = (
        config.load(config_file(f"bench/sd3.5-medium-384-{name}")) for name in ("chain", "tree")
    )
    method = ("method", "advantage", "loss", "run")
    same = chain.model_copy(update={key: getattr(tree, key) for key in method})
    assert same == tree
    (one, rows, states), (other, fewer_rows, fewer_states) = (
        counted(loaded)[1:] for loaded in (chain, tree)
    )
    assert one == other == 16
    # a trained state costs a forward and a backward of two forwards
    assert (rows + 3 * states) / (fewer_rows + 3 * fewer_states) == pytest.approx(1.95, abs=0.005)
