"""What of a config is not as it would be if nobody had said anything."""

from __future__ import annotations

from support.small_trees import quickstart

from branchgrpo.config.defaults import differing


def told(**keys: str) -> dict[str, tuple[object, object]]:
    found = differing(quickstart({key.replace("__", "."): value for key, value in keys.items()}))
    assert len({one.key for one in found}) == len(found)
    return {one.key: (one.default, one.value) for one in found}


def test_keys_that_differ_are_told_with_their_defaults() -> None:
    found = told(run__seed="7", learner__ema="0.5", evaluation__diversity="0")
    assert found["run.seed"] == (0, 7)
    assert found["learner.ema"] == (0.0, 0.5)
    assert "evaluation.diversity" not in found and "run.wandb" not in found
    # required, so without a default
    assert found["prompts"] == (None, "embedded:train")
    assert found["model.path"] == (None, "embedded:tiny-flux")


def test_components_are_named_also_in_lists() -> None:
    found = told(rewards="[{name: jpeg, weight: 2.0}, {name: colour}]")
    assert found["model.name"] == (None, "flux") and "loss.name" in found
    assert found["rewards.0.name"] == (None, "jpeg") and found["rewards.1.name"] == (None, "colour")
    assert found["rewards.0.weight"] == (1.0, 2.0) and "rewards.1.weight" not in found


def test_a_section_s_own_default_counts() -> None:
    """loss.mean.start is 0.9 where nobody says anything, though a decay alone begins at 0."""
    config = quickstart()
    assert "loss.mean.start" not in told(loss="{name: clipped}")
    found = told(loss="{name: clipped, mean: {start: 0.5, rate: 0.001}}")
    assert found["loss.mean.start"] == (0.9, 0.5)
    assert config.run.name == "quickstart" and told()["run.name"] == ("run", "quickstart")


def test_secrets_are_masked() -> None:
    env = "{env_vars: {TOKEN: very-secret}}"
    found = told(rewards=f"[{{name: jpeg, runtime_env: {env}}}]")
    assert "very-secret" not in str(found) and found["rewards.0.runtime_env"][0] == {}
