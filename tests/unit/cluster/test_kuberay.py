"""KubeRay's manifests of the shared layout, and both layouts' against KubeRay's own schema where
that is at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_deploy import LAYOUTS, kubernetes, load, submitted

from branchgrpo.app import roles
from cluster.placement import bundle

pytestmark = pytest.mark.heavy

CRDS = os.environ.get("KUBERAY_CRD", "")


def test_the_shared_layout_has_one_group_whose_gpus_are_filled_by_ranks_and_rewards() -> None:
    config, groups = submitted("rayjob-shared.yaml"), kubernetes("raycluster-shared.yaml")
    assert config.cluster.layout == "shared" and config.rollout.workers == 0
    assert groups["headgroup"]["resources"]["CPU"] == 0  # so no actor goes there
    (group,) = (group for name, group in groups.items() if name != "headgroup")
    has = group["resources"]
    rank, reward = (
        bundle(roles.actor_options(one)) for one in (config.learner, config.reward_workers)
    )
    beside = bundle(roles.actor_options(config.rollout))
    # one rank a GPU, and no second one beside it
    assert has["GPU"] == 8 and 0.5 < rank["GPU"] < 1
    nodes = config.learner.ranks / has["GPU"]
    workers = config.reward_workers.workers * len(config.reward_groups)
    for name in ("CPU", "GPU"):
        assert config.learner.ranks * rank[name] + workers * reward[name] <= nodes * has[name], name
    assert group["min_workers"] <= nodes <= group["max_workers"]
    # a rollout worker that `branchgrpo scale` adds finds room on a further node
    assert nodes < group["max_workers"] and all(has[name] >= need for name, need in beside.items())


def closed(schema: Any) -> Any:
    """The schema as the API server's strict validation reads it: no field that is not in it, and
    quantities may be numbers or text."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(value) for name, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
    if isinstance(made.get("properties"), dict) and not made.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        made.setdefault("additionalProperties", False)
    return made


def refused(manifest: Any, crd: Any) -> list[str]:
    """What the schema of a CustomResourceDefinition says against a manifest: path and reason."""
    from jsonschema import Draft7Validator

    version = manifest["apiVersion"].partition("/")[2]
    (schema,) = (one["schema"] for one in crd["spec"]["versions"] if one["name"] == version)
    root = closed(schema["openAPIV3Schema"])
    root["properties"]["metadata"] = {"type": "object"}  # of the API server
    found = Draft7Validator(root).iter_errors(manifest)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


@pytest.mark.skipif(
    not CRDS,
    reason="KUBERAY_CRD is not set: the folder of KubeRay's helm-chart/kuberay-operator/crds",
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_kuberay_s_schema_takes_the_manifests(kind: str, layout: str) -> None:
    crd = yaml.load(
        Path(CRDS, f"ray.io_{kind}s.yaml").read_text(encoding="utf-8"),
        getattr(yaml, "CSafeLoader", yaml.SafeLoader),
    )
    manifest = load(f"{kind}{layout}.yaml")
    assert refused(manifest, crd) == []
    manifest["spec"]["rayVersions"] = "2.60.0"
    assert len(refused(manifest, crd)) == 1


SMALL_CRD = {
    "spec": {
        "versions": [
            {
                "name": "v1",
                "schema": {
                    "openAPIV3Schema": {
                        "properties": {
                            "apiVersion": {"type": "string"},
                            "metadata": {"type": "object"},
                            "spec": {
                                "properties": {
                                    "mode": {"enum": ["disabled", "token"], "type": "string"},
                                    "requests": {
                                        "additionalProperties": {
                                            "anyOf": [{"type": "integer"}, {"type": "string"}],
                                            "x-kubernetes-int-or-string": True,
                                        },
                                        "type": "object",
                                    },
                                },
                                "required": ["mode"],
                                "type": "object",
                            },
                        },
                        "type": "object",
                    }
                },
            }
        ]
    }
}
"""A schema as KubeRay's are, of few fields."""


@pytest.mark.parametrize(
    ("spec", "places"),
    [
        ({"mode": "token", "requests": {"cpu": "500m", "gpus": 8}}, []),
        ({"mode": "tokens"}, ["$.spec.mode"]),
        ({"mode": "token", "request": {}}, ["$.spec"]),
        ({"mode": "token", "requests": {"cpu": 0.5}}, ["$.spec.requests.cpu"]),
        ({}, ["$.spec"]),
    ],
)
def test_the_schema_check_finds_mistakes(spec: dict[str, Any], places: list[str]) -> None:
    found = refused({"apiVersion": "ray.io/v1", "metadata": {"name": "x"}, "spec": spec}, SMALL_CRD)
    assert [text.partition(": ")[0] for text in found] == places
