"""Grids that methods are tuned with: what is asked for, and what each method is tried with."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_comparison import METHODS, compared

from branchgrpo.comparison.budget import Budget
from branchgrpo.comparison.grid import Grid, read
from branchgrpo.comparison.runs import Comparison
from branchgrpo.data import prompts
from branchgrpo.data.records import prompts_of
from branchgrpo.errors import UserError

pytestmark = pytest.mark.heavy

RATE, STEPS, CLIP = "learner.learning_rate", "learner.optimiser_steps", "loss.clip_range"


def grid(*texts: str, seeds: int = 1, budget: str = "3") -> Grid:
    return Grid(read(texts), seeds, Budget.parse(budget))


@pytest.fixture
def both(tmp_path: Path) -> Comparison:
    """Rates and steps of two methods."""
    return compared(tmp_path / "x", grid=grid(f"{RATE}=1e-4,2e-4", f"{STEPS}=1,2", seeds=2))


def test_keys_with_values_are_read_from_files_and_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(f"{RATE}: [1.0e-4, 2.0e-4]\nmethod.splits: [[1, 3], [2]]\n")
    assert read([str(file), f"{STEPS}=1,2"]) == {
        RATE: ("1.0e-4", "2.0e-4"),
        "method.splits": ("[1, 3]", "[2]"),
        STEPS: ("1", "2"),
    }
    assert read(["method.splits=[1, 3],[2]"]) == {"method.splits": ("[1, 3]", "[2]")}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([f"{RATE}=1,2", f"{RATE}=3"], f"{RATE}: expected it once, got it twice"),
        ([f"{RATE}=1,1"], "expected a list of different values, got 1, 1"),
        ([f"{RATE}="], "expected a list of different values, got none"),
        ([f"{RATE}=[1"], "expected values as V1,V2"),
        (["=1,2"], "expected dotted keys of the config, got ''"),
        ([RATE], "expected KEY=V1,V2 or a file: expected a YAML file, cannot read"),
        (["FILE"], "FILE:2: expected a dotted key with a list of values, got learner"),
        ([], "expected at least one key"),
    ],
)
def test_grids_that_are_none_are_refused_in_a_line(
    texts: list[str], words: str, tmp_path: Path
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(f"{STEPS}: [1, 2]\nlearner: {{learning_rate: [1, 2]}}\n")
    with pytest.raises(UserError, match=r"^--grid: ") as caught:
        grid(*(text.replace("FILE", str(file)) for text in texts))
    found = str(caught.value).replace(str(file), "FILE")
    assert words in found and "\n" not in found


def test_every_method_is_tried_at_all_combinations(both: Comparison) -> None:
    tuning = both.tuning
    assert tuning is not None
    wanted = [{RATE: rate, STEPS: steps} for rate in ("1e-4", "2e-4") for steps in ("1", "2")]
    assert tuning.points == dict.fromkeys(METHODS, wanted)
    # seeds outside, methods inside: they take turns
    assert [run[::2] for run in tuning.runs[:2]] == [(method, 1000) for method in METHODS]
    assert tuning.runs[8:] == [(method, number, 1001) for method, number, _ in tuning.runs[:8]]
    config = tuning.config("dancegrpo", wanted[3], 1001)
    found = config.learner.learning_rate, config.learner.optimiser_steps, config.run.iterations
    assert found == (2e-4, 2, 3) and config.run.seed == 1001
    between = config.evaluation.every, config.evaluation.every_seconds
    assert between == (0, 0) and not config.checkpoint.kept  # judged at the end alone


def test_a_key_that_a_method_does_not_have_is_left_out_for_it(tmp_path: Path) -> None:
    keys = grid(f"{CLIP}=1e-4,1e-3,1e-2", f"{RATE}=1e-4,2e-4")
    tuning = compared(tmp_path / "x", ["dancegrpo", "nft"], grid=keys).tuning
    assert tuning is not None and tuning.without == {"dancegrpo": [], "nft": [CLIP]}
    assert [len(tuning.points[method]) for method in ("dancegrpo", "nft")] == [6, 2]
    assert tuning.runs[4:] == [("dancegrpo", number, 1000) for number in (3, 4, 5, 6)]


def test_a_point_that_a_method_refuses_is_left_out_for_it(tmp_path: Path) -> None:
    forks = grid("rollout.fork_depth=auto,2")
    tuning = compared(tmp_path / "x", ["branchgrpo-splits", "tempflow"], grid=forks).tuning
    assert tuning is not None and tuning.refused["branchgrpo-splits"] == []
    ((keys, why),) = tuning.refused["tempflow"]
    assert keys == {"rollout.fork_depth": "2"} and "expected auto or 0 with tempflow" in why
    assert tuning.points["tempflow"] == [{"rollout.fork_depth": "auto"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learner.learnin_rate=1,2", r"unknown key; did you mean --learner\.learning_rate\?$"),
        ("loss.beta=1,2", r"loss\.beta: unknown key of clipped"),
        (f"{RATE}=1e-4,-1", r"learner\.learning_rate: .*-1"),
        ("evaluation.kept_mb=1,2", r"got evaluation\.kept_mb, which is the same for all"),
        ("learner.ranks=1,2", r"got learner\.ranks, which is the same for all"),
        ("held_out=embedded:train,split:9", "got held_out, which is the same for all"),
        ("run.seed=1,2", r"expected keys of methods, got run\.seed"),
        ("sampling.steps=10,14", r"expected it in the grid alone, got --sampling\.steps as well"),
    ],
)
def test_keys_that_cannot_be_tuned_are_refused_in_a_line(
    text: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^--grid: .*{words}") as caught:
        compared(tmp_path / "x", grid=grid(text))
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()


def test_requests_with_other_grids_are_told_apart(both: Comparison, tmp_path: Path) -> None:
    def digest(*texts: str, seeds: int = 2, budget: str = "3") -> str:
        return compared(tmp_path / "y", grid=grid(*texts, seeds=seeds, budget=budget)).digest

    same = f"{RATE}=1e-4,2e-4", f"{STEPS}=1,2"
    others = {
        digest(f"{RATE}=1e-4,3e-4", f"{STEPS}=1,2"),
        digest(same[0]),
        digest(*same[::-1]),
        digest(*same, seeds=1),
        digest(*same, budget="3s"),
        compared(tmp_path / "y").digest,
    }
    assert digest(*same) == both.digest and len(others | {both.digest}) == 7
    both.open()
    with pytest.raises(UserError, match="holds another comparison"):
        compared(both.folder).open()


@pytest.mark.parametrize("held_out", ["embedded:heldout", "split:300"])
def test_points_are_judged_by_training_prompts_that_they_do_not_train_on(
    tmp_path: Path, held_out: str
) -> None:
    tuning = compared(
        tmp_path, grid=grid(f"{RATE}=1e-4,2e-4"), held_out=held_out, evaluation__prompts="6"
    ).tuning
    assert tuning is not None
    config = tuning.config("dancegrpo", {}, 1000)
    train, judges = (set(prompts_of(part[:])) for part in prompts.lists(config))
    before, compared_on = (
        set(prompts_of(part[:]))
        for part in prompts.lists(config.model_copy(update={"held_out": held_out}))
    )
    assert len(judges) == config.evaluation.prompts == 2  # prompts_between
    assert not judges & compared_on and not train & compared_on
    assert train | judges == before - compared_on and not train & judges


def test_a_list_too_short_to_judge_by(tmp_path: Path) -> None:
    file = tmp_path / "few.txt"
    file.write_text("\n".join(f"the number {number}" for number in range(20)))
    with pytest.raises(UserError, match=r"at least 8 training prompts that are not held out.* 7$"):
        compared(tmp_path / "x", grid=grid(f"{RATE}=1e-4"), prompts=str(file), held_out="split:13")
