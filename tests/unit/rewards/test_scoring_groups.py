"""Records on their way to rewards, and rewards that compare the pictures of a record: the same
however trees are cut, where texts are encoded, and where a scorer runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import in_process
from support.remote_peers import running
from support.small_trees import quickstart

from actors.encoder import Encoder
from actors.pools import Encoders
from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.data.encodings import Encodings, encode_missing
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.http.protocol import MB
from branchgrpo.rewards.http.server import RewardServer
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.rollout.collect import RolloutCollector

pytestmark = pytest.mark.networks

MINE = """
import json
from hashlib import sha256
from pathlib import Path
import numpy as np

def noted(images, samples):
    '''Writes what it is given, and scores by the count that the record wants.'''
    with (Path(__file__).parent / "noted.jsonl").open("a") as file:
        for sample in samples:
            pictures = [sha256(picture.read()).hexdigest() for picture in sample.images]
            sizes = [picture.open().size for picture in sample.images]
            row = [sample.prompt, sample.id, sample.negative_prompt, dict(sample.metadata)]
            file.write(json.dumps([*row, pictures, sizes]) + chr(10))
    return [sample.metadata["count"] for sample in samples]

def place(images, samples):
    '''Where a picture stands among those of its record, and how many are darker.'''
    assert len({id(sample) for sample in samples}) == 1, "pictures of several records"
    means = np.array([np.asarray(image).mean() for image in images])
    return 100 * np.arange(len(means)) + (means[:, None] > means).sum(1)

place.grouped = True
"""
SMALL = {
    "sampling.steps": "4",
    "method.splits": "[0, 1]",
    "method.leaves": "4",
    "rollout.workers": "3",
    "rollout.tasks_per_worker": "3",
    "rollout.threads": "1",
    "learner.threads": "1",
    "held_out": "split:2",
    "evaluation.prompts": "2",
    "evaluation.prompts_between": "2",
}
COUNT = 3


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """A file of records with pictures, and rewards in a file."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "pictures").mkdir()
    rows = []
    for number in range(6):
        name = f"pictures/{number}.png"
        Image.new("RGB", (4 + number, 3), (number, 0, 0)).save(tmp_path / name)
        row = {"prompt": f"the number {10 + number} in red", "id": number, "image": name}
        row |= {"negative_prompt": f"a {'blue ' * number}sea", "count": number, "tags": ["é", None]}
        rows.append(json.dumps(row))
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    rewards = [f"{{name: {tmp_path}/mine.py:{name}}}" for name in ("noted", "place")]
    return SMALL | {"prompts": str(tmp_path / "list.jsonl"), "rewards": f"[{', '.join(rewards)}]"}


def collected(config: Config) -> RolloutBatch:
    samples = prompts.lists(config)[0][:COUNT]
    plan = config.method.plan(0, config.schedule())
    return RolloutCollector(config, in_process.Service(config), "test").collect(
        plan, iteration=0, version=0, prompts=list(range(COUNT)), samples=samples, trees=2
    )


def test_trees_are_in_order_whichever_comes_first(
    keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or figures would differ in the last bit from run to run."""

    class LastFirst(in_process.Tasks):
        def run(self) -> None:
            while self.pending:
                self.pending.pop()()

    monkeypatch.setattr(in_process, "Tasks", LastFirst)
    batch = collected(quickstart(keys))
    names = [(prompt, tree) for prompt in range(COUNT) for tree in range(2)]
    assert list(batch.scores) == list(batch.rewards) == names
    assert batch.parts and all(list(part) == names for part in batch.parts.values())


def noted(folder: Path) -> list[list[Any]]:
    """What the reward was given since it was asked last: each once."""
    lines = (folder / "noted.jsonl").read_text().splitlines()
    (folder / "noted.jsonl").unlink()
    assert len(lines) == COUNT * 2 * 4  # a leaf each
    return [json.loads(line) for line in sorted(set(lines))]


def wanted(config: Config, folder: Path) -> list[list[Any]]:
    """By the file itself."""
    chosen = {sample.id for sample in prompts.lists(config)[0][:COUNT]}
    rows = [json.loads(line) for line in (folder / "list.jsonl").read_text().splitlines()]
    found = []
    for row in rows:
        if str(row["id"]) in chosen:
            data = (folder / row["image"]).read_bytes()
            kept = {"count": row["count"], "tags": row["tags"]}
            texts = [row["prompt"], str(row["id"]), row["negative_prompt"], kept]
            found.append([*texts, [sha256(data).hexdigest()], [[4 + row["id"], 3]]])
    return found


@contextmanager
def running_all(config: Config) -> Iterator[list[str]]:
    """Each of a config's rewards behind HTTP; gives their urls."""
    with ExitStack() as serving:
        yield [
            serving.enter_context(
                running(
                    RewardServer(
                        reward.build(Resources()), reward.title, MB, grouped=reward.grouped
                    )
                )
            )
            for reward in config.rewards
        ]


def same(one: RolloutBatch, other: RolloutBatch) -> None:
    assert one.scores.keys() == other.scores.keys() and len(one.scores) == COUNT * 2
    for key, scores in one.scores.items():
        assert scores.shape == (2, 4) and np.isfinite(scores).all()
        np.testing.assert_array_equal(scores, other.scores[key])


def test_records_and_groups_are_the_same_by_every_way(tmp_path: Path, keys: dict[str, str]) -> None:
    """Trees whole and in pieces, on three workers; texts encoded with them and beforehand;
    scorers here and behind HTTP."""
    config = quickstart(keys | {"rollout.fork_depth": "0", "rollout.workers": "1"})
    expected, whole = wanted(config, tmp_path), collected(config)
    assert noted(tmp_path) == expected and len(expected) == COUNT
    for (prompt, tree), scores in whole.scores.items():
        assert (scores[0] == prompts.lists(config)[0][prompt].metadata["count"]).all()
        # two trees of four leaves, in that order
        assert (scores[1] // 100).tolist() == [4 * tree + leaf for leaf in range(4)]

    for depth in ("0", "2"):
        cut = quickstart(keys | {"rollout.fork_depth": depth})
        same(collected(cut), whole)
        assert noted(tmp_path) == expected

    before = quickstart(
        keys | {"model.encode": "precompute", "model.encodings": str(tmp_path / "encodings")}
    )
    encoder, store = Encoder(before, 0), Encodings.open(before.model)
    encoder.ready()
    samples = chain(*prompts.lists(before))
    assert encode_missing(Encoders(in_process.Pool([encoder])), store, samples, lambda *_: None)
    same(collected(before), whole)
    assert noted(tmp_path) == expected

    places = []
    with running_all(config) as urls:
        for reward, url in zip(config.rewards, urls, strict=True):
            name, grouped = reward.title, str(reward.grouped).lower()
            places.append(f"{{name: remote, url: '{url}', whole_groups: {grouped}, label: {name}}}")
        far = quickstart(keys | {"rollout.fork_depth": "2", "rewards": f"[{', '.join(places)}]"})
        same(collected(far), whole)
    assert noted(tmp_path) == expected
