"""What TensorBoard is told of a run beside its figures: configuration, hyper-parameters, and what
comes first on its page of own charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

HYPERPARAMETERS = {
    "label": "run.label",
    "method": "method.name",
    "loss": "loss.name",
    "advantage": "advantage.name",
    "learning rate": "learner.learning_rate",
    "optimiser steps": "learner.optimiser_steps",
    "KL beta": "loss.kl_beta",
    "prompts": "rollout.prompts",
    "trees per prompt": "rollout.trees_per_prompt",
    "steps": "sampling.steps",
    "LoRA rank": "model.lora_rank",
    "model": "model.path",
    "seed": "run.seed",
}
"""Columns in which runs are compared, and their keys. Some losses and models lack one."""

TEXTS = {"label", "method", "loss", "advantage", "model"}
"""Those of them that are no numbers."""

CHARTS = {
    "reward and held-out": {
        "reward": "reward/total",
        "held-out, what is trained on": "held_out/total",
        "held-out, all": "held_out/.*",
        "alarms": "alarm/.*",
    },
    "update": {
        "ratio": "update/(first_)?ratio_deviation",
        "clip fraction": "update/clip_fraction",
        "KL": "update/kl",
        "velocity norm": "update/velocity_norm",
        "gradient norm": "update/gradient_norm",
    },
    "trees": {
        "spread": "reward/spread|spread/.*",
        "flat groups": "reward/flat_groups",
        "effective samples": "tree/effective_samples",
    },
    "seconds": {"by phase": "time/(encode|grow|score|update|publish)"},
}
"""Charts in their order: category, title, which figures they have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What a run is."""

    config: Mapping[str, Any]  # nested, without secrets
    metric: str  # the reported score that decides, as reward/score

    def values(self) -> list[Summary.Value]:
        """What is written before a run's figures."""
        return [_text("config", self._yaml()), self._columns(), self._session(), _layout()]

    def _yaml(self) -> str:
        text = yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True)
        return "\n".join(f"    {line}" for line in text.splitlines())  # code, in Markdown

    def _hyperparameters(self) -> Iterator[tuple[str, Any]]:
        for name, key in HYPERPARAMETERS.items():
            section, _, own = key.partition(".")
            found = self.config.get(section, {})
            if own in found and found[own] is not None:
                yield name, found[own]

    def _columns(self) -> Summary.Value:
        """Every run has the same columns, or those of the first would hide the others'."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        metrics = [f"held_out/{self.metric}", "held_out/total", "reward/total"]
        experiment = api_pb2.Experiment(
            time_created_secs=time(),
            hparam_infos=[
                api_pb2.HParamInfo(
                    name=name,
                    type=api_pb2.DATA_TYPE_STRING if name in TEXTS else api_pb2.DATA_TYPE_FLOAT64,
                )
                for name in HYPERPARAMETERS
            ],
            metric_infos=[
                api_pb2.MetricInfo(name=api_pb2.MetricName(tag=metric)) for metric in metrics
            ],
        )
        data = plugin_data_pb2.HParamsPluginData(experiment=experiment)
        return _of_hparams(metadata.EXPERIMENT_TAG, data)

    def _session(self) -> Summary.Value:
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        start = plugin_data_pb2.SessionStartInfo(start_time_secs=time())
        for name, value in self._hyperparameters():
            place = start.hparams[name]
            if name in TEXTS:
                place.string_value = str(value)
            else:
                place.number_value = float(value)
        data = plugin_data_pb2.HParamsPluginData(session_start_info=start)
        return _of_hparams(metadata.SESSION_START_INFO_TAG, data)


def ended(failed: bool) -> Summary.Value:
    """The end of a run, for the table of hyper-parameters."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time())
    data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    return _of_hparams(metadata.SESSION_END_INFO_TAG, data)


def tensor(tag: str, value: Any, kind: Any) -> Summary.Value:
    """A value of a plug-in. kind: its SummaryMetadata."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.util.tensor_util import make_tensor_proto

    return Summary.Value(tag=tag, tensor=make_tensor_proto(value), metadata=kind)


def _text(tag: str, text: str) -> Summary.Value:
    from tensorboard.plugins.text import metadata

    kind = metadata.create_summary_metadata(display_name="", description="")
    return tensor(tag, text.encode(), kind)


def _of_hparams(tag: str, data: Any) -> Summary.Value:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    kind = metadata.create_summary_metadata(data)
    return Summary.Value(tag=tag, tensor=metadata.NULL_TENSOR, metadata=kind)


def _layout() -> Summary.Value:
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                layout_pb2.Chart(
                    title=name,
                    multiline=layout_pb2.MultilineChartContent(tag=[f"^({pattern})$"]),
                )
                for name, pattern in charts.items()
            ],
        )
        for title, charts in CHARTS.items()
    ]
    layout = layout_pb2.Layout(category=categories)
    kind = metadata.create_summary_metadata()
    return tensor(metadata.CONFIG_SUMMARY_TAG, layout.SerializeToString(), kind)
