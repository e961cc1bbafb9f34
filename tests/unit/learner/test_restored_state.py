"""A checkpoint whose bytes are right, but not what a learner wrote: one line, and the policy stays
as it begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.small_trees import quickstart

from actors.learner import Learner
from branchgrpo.algo.methods.adaptive import SplitChooser
from branchgrpo.algo.methods.branch import BranchMethod
from branchgrpo.checkpoint.store import Damaged, open_saved
from branchgrpo.errors import UserError
from branchgrpo.files.regular import parse_json
from branchgrpo.learner.saved_state import check_state, loaded
from branchgrpo.learner.state import restore
from branchgrpo.models import weights as wire
from branchgrpo.service import CheckpointRequest, RestoredState

pytestmark = pytest.mark.networks

FILES = ("weights", "ema", "exp_avg", "exp_avg_sq")
DRIVER = {"iteration": 3, "seconds": 1.5, "gates": {"on_policy_deviation": 0.0}}


class Sample:
    """A learner, one checkpoint of it after a step, and its folder."""

    def __init__(self, where: Path):
        self.learner = Learner(quickstart({"learner.threads": "1", "learner.ema": "0.9"}), 0, list)
        self.where = str(where)
        self.learner.configure(self.learner.config)
        self.begin = self.digest()
        for master in self.learner.policy.masters:
            master.grad = torch.ones_like(master)
        self.learner.policy.optimiser.step()
        self.learner.policy.scheduler.step()
        self.learner.policy.follow()
        self.trained = self.digest()
        self.folder = Path(
            self.learner.checkpoint(
                CheckpointRequest(where=self.where, iteration=3, fence=0, driver=DRIVER)
            ).path
        )
        self.tensors = {file: load_file(self.folder / f"{file}.safetensors") for file in FILES}
        self.whole = {file.name: file.read_bytes() for file in self.folder.iterdir()}

    def digest(self) -> str:
        return wire.digest_of(self.learner.model.trainable())

    def seal(self) -> None:
        body = json.loads(self.whole["manifest.json"])
        names = [
            *body["files"],
            *sorted(
                {file.name for file in self.folder.iterdir()}
                - body["files"].keys()
                - {"manifest.json"}
            ),
        ]
        files = {
            name: (self.folder / name).read_bytes()
            for name in names
            if (self.folder / name).exists()
        }
        body["files"] = {
            name: [hashlib.sha256(data).hexdigest(), len(data)] for name, data in files.items()
        }
        del body["digest"]
        digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
        (self.folder / "manifest.json").write_text(
            json.dumps(body | {"digest": digest}, indent=1) + "\n"
        )

    def refusal(self) -> str:
        """With which what lies there now is refused, apart from its folder."""
        self.seal()
        with pytest.raises(UserError) as caught:
            loaded(open_saved(self.folder), self.learner.policy)
        line = str(caught.value)
        assert (
            line.startswith(f"checkpoint {self.folder}: ") and "\n" not in line and len(line) < 700
        )
        return line.removeprefix(f"checkpoint {self.folder}: ")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(tmp_path_factory.mktemp("run"))


@pytest.fixture
def sample(made: Sample) -> Iterator[Sample]:
    yield made
    for file in made.folder.iterdir():
        file.unlink()
    for name, data in made.whole.items():
        (made.folder / name).write_bytes(data)


def test_what_was_written_comes_back(sample: Sample) -> None:
    assert sample.learner.restore(sample.where) == RestoredState(driver=DRIVER, damaged=())
    assert sample.digest() == sample.trained != sample.begin
    sample.seal()
    assert (sample.folder / "manifest.json").read_bytes() == sample.whole["manifest.json"]
    (sample.folder / "state.json").write_text("{}")
    sample.seal()
    with pytest.raises(
        UserError, match=r"checkpoint .*: state.json: version: expected a count, got None"
    ):
        sample.learner.restore(sample.where)
    assert (
        sample.digest() == sample.begin
        and sample.learner.version == 0
        and not sample.learner.policy.optimiser.state
    )


WRONG = {
    "version": [None, "1", -1, 1.0, True, [1], 10**300],
    "skips": [None, {}, -3],
    "steps": [None, "3", -1.0, float("nan"), 10**400, [2]],
    "schedule": [
        None,
        [],
        {},
        {"last_epoch": "1"},
        {"last_epoch": -1},
        {"last_epoch": 1, "get_lr": 3},
        {"last_epoch": 1, "optimizer": None},
    ],
    "driver": [
        None,
        [],
        "x",
        {"iteration": "3"},
        {"iteration": -1},
        {"seconds": None},
        {"seconds": float("inf")},
        {"gates": []},
        {"gates": {"a": "b"}},
    ],
}


@pytest.mark.parametrize("key", WRONG)
def test_states_of_other_types(key: str, sample: Sample) -> None:
    state = json.loads(sample.whole["state.json"])
    for value in WRONG[key]:
        (sample.folder / "state.json").write_text(json.dumps(state | {key: value}))
        assert sample.refusal().startswith("state.json: ") and key in sample.refusal()
    (sample.folder / "state.json").write_text(
        json.dumps({name: value for name, value in state.items() if name != key})
    )
    assert sample.refusal().startswith(f"state.json: {key}: expected ")


@pytest.mark.parametrize("file", FILES)
def test_tensors_of_another_model(file: str, sample: Sample) -> None:
    path = sample.folder / f"{file}.safetensors"
    tensors = load_file(path)
    name, value = next((name, value) for name, value in tensors.items() if value.ndim == 2)
    for wrong, words in [
        (tensors | {name: value.T.contiguous()}, "expected shape"),
        (tensors | {name: value.long()}, "got int64"),
        (tensors | {"more": value.clone()}, "more|both moments"),
    ]:
        save_file(wrong, path)
        assert (
            any(word in sample.refusal() for word in words.split("|"))
            and file.split("_")[0] in sample.refusal() + "exp"
        )
    path.write_bytes(b"\x09" + bytes(7) + b"not JSON!")
    assert sample.refusal() == (
        f"{file}.safetensors has a header that is not JSON: Expecting value: line 1 column "
        "1 (char 0)"
    )
    path.unlink()
    assert sample.refusal() == f"expected a file {file}.safetensors, found none"


WRONG_REFERENCES = {
    "x": (torch.zeros(2, 3), "x: expected latents of shape"),
    "sigma": (torch.zeros(3), "x, sigma: expected float32 and as many"),
    "base": (torch.tensor([float("nan")], dtype=torch.float64), "base: expected a number above 0"),
    "text.text": (torch.zeros(1), "expected encodings"),
    "text.more": (torch.zeros(3, 2), "expected encodings of as many prompts, got"),
}


def test_what_the_norm_is_measured_by(sample: Sample) -> None:
    """It is the model's own, or refused before anything is changed; older checkpoints have none."""
    learner = sample.learner
    learner.restore(sample.where)
    assert learner.reference is None and not learner.begins
    x = torch.zeros(2, *learner.model.latent_shape)
    texts = {f"text.{n}": one for n, one in learner.model.fingerprint_conditioning(2).items()}
    base = torch.ones(1, dtype=torch.float64)
    right = {"x": x, "sigma": torch.ones(2), "base": base} | texts
    path = sample.folder / "norm_reference.safetensors"
    for name, (wrong, words) in WRONG_REFERENCES.items():
        key = next(iter(texts)) if name == "text.text" else name
        save_file(right | {key: wrong}, path)
        sample.seal()
        with pytest.raises(UserError, match=f"checkpoint .*: norm_reference.safetensors: {words}"):
            learner.restore(sample.where)
        assert sample.digest() == sample.begin
    save_file(right, path)
    sample.seal()
    learner.restore(sample.where)
    assert learner.reference is not None and learner.reference.base == 1.0


SMALL = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
PLACES = [(key,) for key in WRONG] + [
    ("schedule", key)
    for key in ("base_lrs", "last_epoch", "_step_count", "_last_lr", "_is_initial", "new")
]
PLACES += [("driver", key) for key in DRIVER]


@settings(deadline=None, max_examples=60, database=None)
@given(
    place=st.sampled_from(PLACES),
    value=SMALL
    | st.lists(SMALL, max_size=2)
    | st.dictionaries(st.text(max_size=3), SMALL, max_size=2),
)
def test_any_value_in_its_state(made: Sample, place: tuple[str, ...], value: Any) -> None:
    """It is restored, or refused in one line."""
    state = json.loads(made.whole["state.json"])
    *path, last = place
    (state[path[0]] if path else state)[last] = value
    state = parse_json(json.dumps(state).encode())
    try:
        check_state(state, made.learner.policy)
    except Damaged as error:
        assert "\n" not in str(error) and str(error).startswith("state.json: ")
    else:
        restore(made.learner.policy, state, made.tensors)


CHOOSERS = [
    {"iterations": None},
    {"tried": [0]},
    {"tried": "abcd"},
    {"worth": [1, 2]},
    {"worth": None},
    {"splits": []},
    {"splits": [1, 1]},
    {"splits": [99]},
]


@pytest.mark.parametrize("change", CHOOSERS)
def test_choosers_of_other_shapes(change: dict[str, Any]) -> None:
    chooser = SplitChooser(BranchMethod(splits=(0, 2), leaves=4, adapt_every=1), 5, 0)
    with pytest.raises(ValueError, match=r"expected splits, and what was measured at 4 steps"):
        chooser.load(chooser.state() | change)
    chooser.load(json.loads(json.dumps(chooser.state())))
