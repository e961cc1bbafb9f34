"""Parts 4, 5, 10 and `images`: whole iterations in one process, by the real loop, workers, sampler
and update."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.in_process import Service
from support.training import Memory, run_of

from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.training.loop import update
from branchgrpo.training.state import TrainState
from gpu_parts import random_models
from gpu_parts.card import Row, Setting, attempts, busy_share, matmul_tflops
from gpu_parts.forwards import row_tflop

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SCORER = f"{Path(__file__).with_name('scorers.py')}:PickScoreShape"
CLASSES = {"flux": "RandomFlux", "sd3": "RandomSD3", "wan": "RandomWan"}

ONE_CARD = {
    "run.export": "none",
    "cluster.layout": "shared",
    "rollout.workers": "0",
    "rollout.min_workers": "0",
    "reward_workers.workers": "1",
    "learner.ranks": "1",
    "gates.enabled": "false",
    "checkpoint.every": "0",
    "evaluation.every": "0",
    "evaluation.prompts": "2",
}
"""One rank, which also grows the trees."""


def random_family(setting: Setting, family: str, **changes: Any) -> dict[str, str]:
    """Overrides for a model of that family's shape with random weights, on the device."""
    folder = random_models.write_folder(
        setting.folder / family, family, setting.small, **changes if not setting.small else {}
    )
    file = Path(random_models.__file__).resolve()
    return (
        ONE_CARD
        | {"model.name": f"{file}:{CLASSES[family]}", "model.path": str(folder)}
        | on_device(setting)
    )


def on_device(setting: Setting) -> dict[str, str]:
    """Every actor on the device. A share of a card, since the product would refuse that they all
    have the same whole one; none is enforced."""
    roles = ("rollout", "reward_workers", "learner")
    if setting.cuda:
        return {f"{role}.gpus": "0.25" for role in roles}
    places = {f"{role}.gpus": "0" for role in roles}
    return places | {f"{role}.threads": "1" for role in roles}


def overrides(setting: Setting, family: str, side: int, text: int, **more: str) -> dict[str, str]:
    """A run of LoRA in bfloat16 on pictures of so many pixels a side."""
    small = {"model.height": "64", "model.width": "64", "model.max_sequence_length": "16"}
    sizes = {
        "model.height": str(side),
        "model.width": str(side),
        "model.max_sequence_length": str(text),
    }
    return (
        random_family(setting, family)
        | {"model.dtype": "bfloat16", "model.lora_rank": "32"}
        | {"model.gradient_checkpointing": "true", "learner.learning_rate": "1e-4"}
        | (small if setting.small else sizes)
        | more
    )


def loaded(preset: str, changes: dict[str, str], rewards: str = "[{name: jpeg}]") -> Config:
    """The quick start by another method, with these changes and rewards."""
    return configs.load(CONFIGS / "quickstart.yaml", changes | {"rewards": rewards}, preset)


class Iterations:
    """A run that makes one update after the other."""

    def __init__(self, config: Config, folder: Path):
        self.log, self.state = Memory(), TrainState()
        self.service = Service(config)
        self.run = run_of(config, self.service, folder / "checkpoints", log=self.log)
        self.run.begin(self.state)

    def __call__(self) -> dict[str, float]:
        """Metrics of one update."""
        update(self.run, self.state)
        found, self.state.concluded = dict(self.state.record), True
        return found


def seconds_by_part(record: dict[str, float]) -> Row:
    """The loop's own clock."""
    return {name: value for name, value in sorted(record.items()) if name.startswith("time/")}


def one_tree(setting: Setting) -> Iterator[Row]:
    """One tree of 8 leaves and 10 steps at FLUX.1-dev's shape, all edges trained: seconds by part,
    share of time that the card is busy, share of the measured rate of matrix products."""
    changes = overrides(
        setting,
        "flux",
        720,
        512,
        **{
            "sampling.steps": "4" if setting.small else "10",
            "method.splits": "[0, 1]" if setting.small else "[0, 2, 4]",
            "method.leaves": "4" if setting.small else "8",
            "rollout.prompts": "1",
            "rollout.max_batch": "8",
            "learner.micro_batch": "4",
        },
    )

    def iterations(case: Row) -> Row:
        config = loaded("branchgrpo", changes)
        tflop, peak = row_tflop(config.model), matmul_tflops(setting)
        made = Iterations(config, setting.folder)
        made()  # warms up
        setting.forget()
        record: dict[str, float] = {}
        seconds, busy = busy_share(setting, lambda: record.update(made()))
        grown, trained = record["tree/forwards"], record["update/forwards"]
        work = tflop * (grown + 4 * trained)
        return seconds_by_part(record) | {
            "grown_rows": grown,
            "trained_rows": trained,
            "seconds": seconds,
            "busy_share": busy,
            "matmul_tflops": peak,
            "share_of_matmul": work / seconds / peak,
            "growing_share_of_matmul": tflop * grown / record["time/grow"] / peak,
            "updating_share_of_matmul": 4 * tflop * trained / record["time/update"] / peak,
            "ratio_off_max": record["update/ratio_deviation"],
            "clip_fraction": record["update/clip_fraction"],
        }

    yield from attempts(setting, [{"tree": "8 leaves"}], iterations)


def parents(setting: Setting) -> Iterator[Row]:
    """Peak of an update against how many parents it has: latents and texts of FLUX.1-dev's size,
    a denoiser of two blocks, which hides nothing."""
    shallow = {"num_layers": 1, "num_single_layers": 1}

    def updated(case: Row) -> Row:
        changes = overrides(setting, "flux", 720, 512) | random_family(setting, "flux", **shallow)
        changes |= {
            "sampling.steps": "4" if setting.small else "10",
            "method.splits": "[0, 1]",
            "method.leaves": "4",
            "rollout.prompts": str(case["prompts"]),
            "learner.micro_batch": "2",
        }
        config = loaded("branchgrpo", changes)
        made = Iterations(config, setting.folder)
        made()
        setting.forget()
        record = made()
        return {"parents": record["update/forwards"], "seconds": record["time/update"]}

    cases = [{"prompts": n} for n in ((1, 2) if setting.small else (1, 2, 4, 8, 16))]
    yield from attempts(setting, cases, updated)


def quick_start(setting: Setting) -> Iterator[Row]:
    """The quick start, as it is shipped, with every actor on the device."""

    def trained(case: Row) -> Row:
        changes = {"run.export": "none", "rollout.workers": "1"} | on_device(setting)
        changes["gates.on_policy_tolerance"] = "1e-3"  # TF32, and batches of other sizes
        made = Iterations(configs.load(CONFIGS / "quickstart.yaml", changes), setting.folder)
        records = [made() for _ in range(case["iterations"])]
        return seconds_by_part(records[-1]) | {
            "reward_first": records[0]["reward/total"],
            "reward_last": records[-1]["reward/total"],
            "on_policy_deviation": made.state.gates.get("on_policy_deviation", float("nan")),
        }

    yield from attempts(setting, [{"iterations": 2 if setting.small else 30}], trained)


PUBLISHED = 2.13
"""Images a GPU and second of UniRL on this workload, on 8 × H20: 48 prompts × 16 images in 45.0 s.
Another card: say both when they are compared."""


def workload(setting: Setting, shape: str) -> Config:
    """One card's share of a shipped config, with random weights and any prompts; small pictures
    where there is no card."""
    file = CONFIGS / "bench" / f"sd3.5-medium-384-{shape}.yaml"
    whole = configs.load(file)
    share = whole.rollout.prompts // whole.learner.ranks
    scorer = f"{{name: '{SCORER}', narrow: {str(setting.small).lower()}, dtype: bfloat16}}"
    changes = random_family(setting, "sd3") | {
        "rollout.prompts": "1" if setting.small else str(share),
        "rewards": f"[{scorer}]",
        "prompts": "embedded:train",
        "held_out": "embedded:heldout",
    }
    if setting.small:
        changes |= {"model.height": "64", "model.width": "64", "model.max_sequence_length": "16"}
    return configs.load(file, changes)


def images(setting: Setting) -> Iterator[Row]:
    """One card's share of configs/bench/sd3.5-medium-384-chain.yaml and …-tree.yaml: images a GPU
    and second of growing, scoring and updating."""

    def trained(case: Row) -> Row:
        made = Iterations(workload(setting, case["shape"]), setting.folder)
        made()
        setting.forget()
        record = made()
        rate = record["tree/leaves"] / record["time/iteration"]
        return seconds_by_part(record) | {
            "images": record["tree/leaves"],
            "images_per_gpu_second": rate,
            "against_published": rate / PUBLISHED,
            "grown_rows": record["tree/forwards"],
            "trained_rows": record["update/forwards"],
        }

    yield from attempts(setting, [{"shape": shape} for shape in ("chain", "tree")], trained)
