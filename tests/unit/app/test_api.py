"""`import branchgrpo as bg`: what needs no Ray."""

from __future__ import annotations

import inspect
import re
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.records import records

import branchgrpo as bg
from branchgrpo.app import api
from branchgrpo.app.interruption import Interruption
from branchgrpo.app.results import Result
from branchgrpo.app.rewards import check_sendable, with_rewards
from branchgrpo.config.load import load
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import QUICKSTART
from branchgrpo.rewards.base import Resources, RewardOptions, Scorer
from branchgrpo.rewards.jpeg import JpegReward
from branchgrpo.types import F32, U8, Sample

LIGHT = """
import sys
import branchgrpo as bg
assert callable(bg.train) and callable(bg.compare) and bg.__version__
config = bg.load_config("quickstart", preset="branchgrpo", overrides={"run.iterations": 50})
assert config.run.iterations == 50
heavy = {"torch", "ray", "diffusers", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
ROOMS = """
import branchgrpo.training.loop, branchgrpo.comparison.runs
from branchgrpo import train
import branchgrpo as bg
assert train is bg.train and callable(bg.train) and callable(bg.compare)
"""


def redness(images: list[Any], samples: list[bg.Sample]) -> list[float]:
    """Mean of the red channel."""
    return [float(np.asarray(image)[..., 0].mean()) for image in images]


class Loud:
    """An object that is called like a function."""

    def __call__(self, images: list[Any], samples: list[bg.Sample]) -> list[float]:
        return [float(len(sample.prompt)) for sample in samples]


class Constant(RewardOptions):
    """A component of somebody's own."""

    value: float = 1.0

    def build(self, resources: Resources) -> Scorer:
        return ConstantScorer(self.value)


class ConstantScorer(Scorer):
    def __init__(self, value: float):
        self.value = value

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        return {"score": np.full(len(samples), self.value, np.float32)}


@pytest.fixture(scope="module")
def quick() -> Config:
    return load(QUICKSTART)


@pytest.mark.parametrize("code", [LIGHT, ROOMS], ids=["light", "rooms"])
def test_names_are_there_whatever_was_imported_first(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_functions_show_their_signatures() -> None:
    assert inspect.signature(bg.train) == inspect.signature(api.train)
    assert inspect.signature(bg.compare) == inspect.signature(api.compare)
    for name in bg.__all__:
        assert getattr(bg, name) is not None and name in dir(bg)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = bg.trian


def test_the_page_has_every_function_as_it_is() -> None:
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)\((.*?)\)` \|", page, re.MULTILINE))
    assert rows.keys() == {"load_config", "train", "evaluate", "compare", "register"}
    for name, words in rows.items():
        found = [
            one.name if one.default is one.empty else f"{one.name}={one.default!r}"
            for one in inspect.signature(getattr(bg, name)).parameters.values()
        ]
        assert ", ".join(found).replace("'", '"') == words, name


def test_overrides_are_values_of_python() -> None:
    found = bg.load_config(
        preset="branchgrpo",
        overrides={
            "run.iterations": 7,
            "run.folder": Path("else where"),
            "learner.learning_rate": np.float32(0.5),
            "learner.betas": (0.5, 0.25),
            "sampling.shift": None,
            "cluster.dashboard": False,
            "method.splits": [0, 3],
            "evaluation": {"prompts": 12, "metric": "ocr/edit"},
            "prompts": "7",
        },
    )
    assert (found.run.iterations, found.run.folder) == (7, "else where")
    assert (found.learner.learning_rate, found.learner.betas) == (0.5, (0.5, 0.25))
    assert (found.sampling.shift, found.cluster.dashboard, found.prompts) == (None, False, "7")
    assert found.method.splits == (0, 3) and found.method.name == "branchgrpo"
    assert (found.evaluation.prompts, found.evaluation.metric) == (12, "ocr/edit")
    assert found.evaluation.prompts_between == 64  # of the file
    with pytest.raises(
        bg.UserError, match=r"run\.iteration: unknown key; did you mean .*iterations"
    ):
        bg.load_config(overrides={"run.iteration": 3})
    with pytest.raises(bg.UserError, match=r"run\.seed: expected text, a number, .* got <object"):
        bg.load_config(overrides={"run.seed": object()})
    with pytest.raises(bg.UserError, match="did you mean quickstart"):
        bg.load_config("quickstar")


def test_rewards_of_every_form(quick: Config) -> None:
    given = [
        (redness, 0.5),
        "ocr",
        lambda images, samples: [1.0] * len(images),
        lambda images, samples: [2.0] * len(images),
        (Loud(), 2),
        partial(redness),
        Constant,
        Constant(label="three", value=3.0),
        JpegReward(want="large"),
        ("clip", 0.25),
    ]
    found = with_rewards(quick, given).rewards
    assert [one.title for one in found] == (
        "redness ocr lambda lambda-2 Loud redness-2 Constant three jpeg clip".split()
    )
    assert [one.weight for one in found] == [0.5, 1, 1, 1, 2, 1, 1, 1, 1, 0.25]
    assert found[1] == quick.rewards[0]  # the config's own, with its options
    assert found[8] == given[8]

    pixels = np.zeros((2, 1, 4, 4, 3), np.uint8)
    pixels[1, ..., 0] = 9
    scores = [
        found[place].build(Resources()).score(pixels, records(["one", "three"]))
        for place in range(8)
        if place != 1
    ]
    assert [one["score"].tolist() for one in scores] == (
        [[0, 9], [1, 1], [2, 2], [3, 5], [0, 9], [1, 1], [3, 3]]
    )


def test_the_metric_that_decides_follows(quick: Config) -> None:
    edit = quick.model_copy(
        update={"evaluation": quick.evaluation.model_copy(update={"metric": "ocr/edit"})}
    )
    assert with_rewards(edit, [redness]).metric == "redness/score"
    assert with_rewards(edit, [redness, "ocr"]).metric == "ocr/edit"
    assert with_rewards(edit, None) is edit


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "rewards: expected a list of at least one reward, got []"),
        ("ocr", "rewards: expected a list of at least one reward, got 'ocr'"),
        (["ocrr"], "rewards.0: expected one of .* got 'ocrr'; did you mean ocr?"),
        ([redness, 3], r"rewards.1: expected a function f\(images, samples\), .* got 3"),
        ([lambda images: [1.0]], r"rewards.0: .*expected a function f\(images, samples\)"),
        ([int], "rewards.0: expected a subclass of RewardOptions or a function"),
        ([(redness, "much")], r"rewards.0: expected \(reward, weight\)"),
        (["ocr", "ocr"], "rewards: expected different labels"),
        (["./no.py:reward"], "rewards.0: expected a Python file, found nothing at"),
        ([Constant(label="a", value=1.0), ("remote", 1)], "rewards.1.*url"),
    ],
    ids=range(10),
)
def test_what_is_no_reward_is_one_line(quick: Config, given: Any, words: str) -> None:
    with pytest.raises(
        bg.UserError, match=words.replace("[]", r"\[\]").replace("?", r"\?")
    ) as error:
        with_rewards(quick, given)
    assert len(str(error.value).splitlines()) == 1


def test_a_reward_that_cannot_travel_is_one_line(quick: Config) -> None:
    lock = threading.Lock()

    def locked(images: list[Any], samples: list[bg.Sample]) -> list[float]:
        with lock:
            return [1.0] * len(images)

    check_sendable(with_rewards(quick, [redness, Constant, lambda images, samples: [1.0]]))
    with pytest.raises(bg.UserError, match=r"rewards\.1 \(locked\): .* pickle") as error:
        check_sendable(with_rewards(quick, [redness, locked]))
    assert len(str(error.value).splitlines()) == 1


def test_calls_that_cannot_be_are_one_line(quick: Config, tmp_path: Path) -> None:
    with pytest.raises(bg.UserError, match="config: expected what load_config returns"):
        bg.train(3)
    with pytest.raises(bg.UserError, match="did you mean quickstart"):
        bg.train("quickstar")
    with pytest.raises(bg.UserError, match="expected the folder of a run, or a result"):
        bg.evaluate(quick, checkpoint=3)
    with pytest.raises(bg.UserError, match=r"model\.path: expected a diffusers folder"):
        bg.evaluate(tmp_path)
    with pytest.raises(bg.UserError, match="compare: expected a list of methods"):
        bg.compare("dancegrpo")
    with pytest.raises(bg.UserError, match="--budget"):
        bg.compare(["dancegrpo"], budget="soon")
    with pytest.raises(bg.UserError, match=r"grid: learner\.ema: expected a list of values"):
        bg.compare(["dancegrpo"], grid={"learner.ema": 0.9})
    result = Result(folder=tmp_path, config=quick, summary={}, metrics=[])
    with pytest.raises(bg.UserError, match="expected weights/ or checkpoints"):
        result.sample("a cat")
    for keys in ({"count": 0}, {"steps": 1}):
        with pytest.raises(bg.UserError, match="sample: expected at least one prompt"):
            result.sample("a cat", **keys)


def test_one_call_at_a_time(quick: Config) -> None:
    with api._on_ray(quick), pytest.raises(bg.UserError, match="another thread's goes on"):
        bg.train(quick)


def test_signals_are_taken_on_the_main_thread_alone_and_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGTERM)
        assert interrupted()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    found = list[Any]()

    def elsewhere() -> None:
        with Interruption() as interrupted:
            found.extend([interrupted(), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False, before[1]]
