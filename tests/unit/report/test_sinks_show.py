"""Pictures and histograms of a run, read back from TensorBoard, W&B (offline) and MLflow."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from support.small_trees import quickstart
from support.wandb_records import kept
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.util import tensor_util

from branchgrpo.config import load as configs
from branchgrpo.report.about import About
from branchgrpo.report.events import bars
from branchgrpo.report.machine import Machine
from branchgrpo.report.shown import captions, shown
from branchgrpo.report.sinks import MetricsLog, open_sinks, read
from branchgrpo.sinks.base import RichSink
from branchgrpo.types import F32, U8

pytestmark = pytest.mark.heavy

CAPTIONS = ["exact 1.000 · the number 38 in black on yellow", "exact 0.000 · the number 7"]
VALUES = np.array([0.0, 0.25, 0.5, 0.75, 1.0, np.nan], np.float32)


def plain(frames: int = 1) -> U8:
    """Two pictures [2, F, 32, 32, 3] of one colour each."""
    pixels = np.zeros((2, frames, 32, 32, 3), np.uint8)
    pixels[0], pixels[1] = (200, 30, 10), (5, 60, 250)
    return pixels


def show(log: MetricsLog, iteration: int = 3, frames: int = 1) -> None:
    log.write(iteration, {"reward/total": 0.5})
    log.pictures(iteration, "held_out", plain(frames), CAPTIONS)
    log.histograms(iteration, {"reward/leaves": VALUES, "nothing": np.array([np.nan], np.float32)})


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in picture.convert("RGB").getcolors(1 << 16)}


def read_back(folder: Path) -> plugin_event_accumulator.EventAccumulator:
    """As TensorBoard's own server reads it."""
    return plugin_event_accumulator.EventAccumulator(
        str(folder / "tensorboard"), {plugin_event_accumulator.TENSORS: 0}
    ).Reload()


def tensors(events: plugin_event_accumulator.EventAccumulator, tag: str) -> list[tuple[int, Any]]:
    return [
        (event.step, tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)
    ]


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 256, 256), (6, 128, 4 * 128 + 3 * 2)])
def test_tensorboard_shows_pictures_and_histograms(
    frames: int, height: int, width: int, tmp_path: Path
) -> None:
    with MetricsLog(tmp_path) as log:
        show(log, frames=frames)
    events = read_back(tmp_path)
    assert set(events.Tags()["tensors"]) >= {"held_out", "reward/leaves"}
    assert "nothing" not in events.Tags()["tensors"]
    ((step, items),) = tensors(events, "held_out")
    pictures = [Image.open(io.BytesIO(item)) for item in items[2:]]
    assert step == 3 and len(pictures) == 2
    # 32 px are enlarged by a whole factor, four frames of videos stand side by side; captions below
    assert {picture.size for picture in pictures} == {(int(items[0]), int(items[1]))}
    assert pictures[0].width == width and pictures[0].height > height
    for picture, colour in zip(pictures, ((200, 30, 10), (5, 60, 250)), strict=True):
        inner = colours(picture.crop((0, 0, width, height)))
        assert inner == ({colour} if frames == 1 else {colour, (255, 255, 255)})
        below = colours(picture.crop((0, height, width, picture.height)))
        assert (0, 0, 0) in below and (255, 255, 255) in below
    ((step, found),) = tensors(events, "reward/leaves")
    assert step == 3 and found[:, 2].sum() == 5 and (found[0, 0], found[-1, 1]) == (0, 1)
    kinds = {
        tag: events.SummaryMetadata(tag).plugin_data.plugin_name
        for tag in ("held_out", "reward/leaves")
    }
    assert kinds == {"held_out": "images", "reward/leaves": "histograms"}


def test_pictures_of_iterations_that_are_done_again_go(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.rewind(-1)  # as a new run does
        show(log, 1)
        show(log, 2)
        log.rewind(1)
        show(log, 2)
    events = read_back(tmp_path)
    for tag in ("held_out", "reward/leaves"):
        assert [step for step, _ in tensors(events, tag)] == [1, 2]


def test_tensorboard_knows_what_the_run_is(tmp_path: Path) -> None:
    """Also after a new run's first mark, and where a resumed one goes on."""
    config = quickstart({"run.seed": "7", "learner.learning_rate": "0.002"})
    about = About(config=configs.plain(config), metric=config.metric)
    for failed in (True, False):
        with (
            pytest.raises(RuntimeError) if failed else nullcontext(),
            MetricsLog(tmp_path, about=about) as log,
        ):
            show(log, 0)
            log.rewind(-1)
            show(log, 0)
            if failed:
                raise RuntimeError("boom")
        time.sleep(1.1)  # names of event files tell seconds
    events = read_back(tmp_path)
    ((_, text), *_) = tensors(events, "config")
    lines = text.item().decode().splitlines()
    read = yaml.safe_load("\n".join(line.removeprefix("    ") for line in lines))
    assert read == configs.plain(config)
    of_hparams = events.PluginTagToContent("hparams")
    start = hparams.parse_session_start_info_plugin_data(of_hparams[hparams.SESSION_START_INFO_TAG])
    assert (start.hparams["seed"].number_value, start.hparams["method"].string_value) == (
        7,
        "branchgrpo",
    )
    assert start.hparams["label"].string_value == "branchgrpo-antithetic"
    assert start.hparams["learning rate"].number_value == 0.002
    columns = hparams.parse_experiment_plugin_data(of_hparams[hparams.EXPERIMENT_TAG])
    assert columns.metric_infos[0].name.tag == f"held_out/{config.metric}"
    assert set(start.hparams) <= {info.name for info in columns.hparam_infos}
    (*_, (_, layout)) = tensors(events, "custom_scalars__config__")
    found = layout_pb2.Layout.FromString(layout.item())
    assert [chart.title for chart in found.category[0].chart][:2] == [
        "reward",
        "held-out, what is trained on",
    ]
    for category in found.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                assert re.compile(pattern)


def test_figures_of_the_machine_go_to_sinks_alone(tmp_path: Path) -> None:
    """They are never the same twice: metrics.jsonl is compared."""
    with MetricsLog(tmp_path, machine=Machine()) as log:
        log.write(1, {"reward/total": 0.5})
    assert set(read(tmp_path / "metrics.jsonl")[0]) == {"iteration", "elapsed", "reward/total"}
    events = read_back(tmp_path)
    found = {
        tag: float(tensors(events, tag)[0][1])
        for tag in events.Tags()["tensors"]
        if tag.startswith("system/")
    }
    assert set(found) == {
        "system/cpu_percent",
        "system/memory_percent",
        "system/memory_gb",
        "system/driver_memory_gb",
    }
    assert 0 < found["system/driver_memory_gb"] < found["system/memory_gb"]
    assert 0 <= found["system/cpu_percent"] <= 100


def test_bars_are_those_of_the_values() -> None:
    found = bars(np.arange(60, dtype=np.float32))  # two of them each
    assert found.shape == (30, 3) and (found[:, 2] == 2).all()
    np.testing.assert_allclose(found[:, 1] - found[:, 0], 59 / 30, rtol=1e-5)
    assert bars(np.zeros(4, np.float32))[:, 2].sum() == 4  # all equal: one bar around them
    near = np.array([1, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    assert bars(near)[:, 2].sum() == 2


def test_captions_begin_with_the_score() -> None:
    found = captions(["a cat", "a dog"], np.array([0.25, 1.0], np.float32), "ocr/exact")
    assert found == ["exact 0.250 · a cat", "exact 1.000 · a dog"]
    with pytest.raises(ValueError, match="as many captions as pictures, got 1 of 2"):
        shown(plain(), ["one"])


def test_a_sink_that_takes_figures_alone_goes_on_working(tmp_path: Path) -> None:
    written: list[Any] = []

    class Figures:
        def write(self, iteration: int, values: Mapping[str, float]) -> None:
            written.append(iteration)

        def close(self, failed: bool) -> None:
            """Nothing is open."""

    class Histograms(RichSink):
        """Takes no pictures."""

        write, close = Figures.write, Figures.close

        def histograms(self, iteration: int, values: Mapping[str, F32]) -> None:
            written.extend((tag, own.tolist()) for tag, own in values.items())

    with MetricsLog(tmp_path, [Figures(), Histograms()]) as log:
        show(log)
    assert written == [3, 3, ("reward/leaves", [0.0, 0.25, 0.5, 0.75, 1.0])]


def test_mlflow_gets_pictures_and_quantiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path}/mlruns"
    sinks = quickstart({"run.mlflow": uri}).all_sinks
    with MetricsLog(
        tmp_path / "run", open_sinks(sinks, tmp_path / "run", {"run": {"seed": 5}})
    ) as log:
        show(log)
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("branchgrpo").experiment_id])
    assert run.data.metrics == {"reward/total": 0.5} | {
        f"reward/leaves/{name}": pytest.approx(value)
        for name, value in (
            ("min", 0.0),
            ("p10", 0.1),
            ("median", 0.5),
            ("p90", 0.9),
            ("max", 1.0),
        )
    }
    text = Path(client.download_artifacts(run.info.run_id, "config.yaml")).read_text()
    assert yaml.safe_load(text) == {"run": {"seed": 5}} and run.data.params == {"run.seed": "5"}
    names = [one.path for one in client.list_artifacts(run.info.run_id, "images")]
    shown = [name for name in names if name.endswith(".png")]
    assert len(shown) == 2 and all("held_out" in name and "step" in name for name in shown)
    picture = Image.open(client.download_artifacts(run.info.run_id, sorted(shown)[0]))
    assert (200, 30, 10) in colours(picture)


def test_wandb_gets_pictures_and_histograms_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sinks = quickstart({"run.wandb": "my-project"}).all_sinks
    with MetricsLog(tmp_path, open_sinks(sinks, tmp_path, {"run": {"seed": 5}})) as log:
        show(log)
    found = kept(tmp_path, lambda found: len(found["history"]) == 3)
    figures, pictures, histograms = found["history"]
    assert (figures["iteration"], figures["reward/total"]) == (3, 0.5)
    images = pictures["held_out"]
    assert (images["_type"], images["count"], images["captions"]) == (
        "images/separated",
        2,
        CAPTIONS,
    )
    (place,) = (tmp_path / "wandb").glob("offline-run-*/files")
    for name, colour in zip(images["filenames"], ((200, 30, 10), (5, 60, 250)), strict=True):
        assert colours(Image.open(place / name)) == {colour}
    bins = histograms["reward/leaves"]
    assert bins["_type"] == "histogram" and sum(bins["values"]) == 5
    assert found["config"]["run"] == {"seed": 5}
    assert found["metrics"]["held_out/total"].summary.max
    assert found["metrics"]["driver/*"].options.hidden
    assert "proc.memory.rssMB" in found["system"]  # W&B's own


def test_wandb_gets_videos_as_gifs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    pixels = np.repeat(plain(90), 16, axis=2)  # [2, 90, 512, 32, 3]
    pixels += np.arange(90, dtype=np.uint8)[:, None, None, None]  # no two frames are equal
    sinks = quickstart({"run.wandb": "my-project"}).all_sinks
    with MetricsLog(tmp_path, open_sinks(sinks, tmp_path, {})) as log:
        log.pictures(1, "held_out", pixels, CAPTIONS)
    found = kept(tmp_path, lambda found: len(found["history"]) == 1)["history"][0]["held_out"]
    assert found["captions"] == CAPTIONS
    (place,) = (tmp_path / "wandb").glob("offline-run-*/files")
    first = Image.open(place / found["videos"][0]["path"])
    assert first.size == (24, 384) and first.n_frames == 30  # every third
    assert first.info["duration"] == pytest.approx(3000 / 16, abs=10)  # GIF's own unit: 10 ms
