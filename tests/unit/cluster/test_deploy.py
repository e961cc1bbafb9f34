"""Deployment files: generated ones are fresh, manifests have the fields and types that KubeRay and
Kubernetes know."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from branchgrpo.app import roles
from branchgrpo.app.parser import parse
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from cluster.deploy.generate import FILES, FOLDER
from cluster.placement import bundle

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[3]

# Fields used, and their types. Ray's are of KubeRay's CRDs
# (helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml and ray.io_rayjobs.yaml in
# ray-project/kuberay, v1 of release 1.5), the rest of Kubernetes' own schema. POD = a pod template.
POD = {
    "metadata.labels": dict,
    "spec.terminationGracePeriodSeconds": int,
    "spec.securityContext.runAsNonRoot": bool,
    "spec.securityContext.runAsUser": int,
    "spec.securityContext.runAsGroup": int,
    "spec.securityContext.fsGroup": int,
    "spec.containers[].name": str,
    "spec.containers[].image": str,
    "spec.containers[].env[].name": str,
    "spec.containers[].env[].value": str,
    "spec.containers[].ports[].name": str,
    "spec.containers[].ports[].containerPort": int,
    "spec.containers[].resources.requests": dict,
    "spec.containers[].resources.limits": dict,
    "spec.containers[].securityContext.allowPrivilegeEscalation": bool,
    "spec.containers[].securityContext.capabilities.drop[]": str,
    "spec.containers[].volumeMounts[].name": str,
    "spec.containers[].volumeMounts[].mountPath": str,
    "spec.volumes[].name": str,
    "spec.volumes[].persistentVolumeClaim.claimName": str,
}
CLUSTER = {
    "rayVersion": str,
    "authOptions.mode": str,
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions.version": str,
    "autoscalerOptions.idleTimeoutSeconds": int,
    "autoscalerOptions.resources.requests": dict,
    "autoscalerOptions.resources.limits": dict,
    "headGroupSpec.rayStartParams": dict,
    "workerGroupSpecs[].groupName": str,
    "workerGroupSpecs[].replicas": int,
    "workerGroupSpecs[].minReplicas": int,
    "workerGroupSpecs[].maxReplicas": int,
    "workerGroupSpecs[].rayStartParams": dict,
    **{
        f"{group}.template.{path}": kind
        for group in ("headGroupSpec", "workerGroupSpecs[]")
        for path, kind in POD.items()
    },
}
JOB = {
    "submissionMode": str,
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    **{f"rayClusterSpec.{path}": kind for path, kind in CLUSTER.items()},
}
MAPS = ("labels", "requests", "limits", "rayStartParams")
"""Fields whose keys are free and whose values are text."""


LAYOUTS = ("", "-shared")
"""In the names of the manifests."""


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every leaf of a manifest with its path; [] is any place in a list."""
    if isinstance(value, dict) and path.rpartition(".")[2] not in MAPS:
        return [
            found
            for key, one in value.items()
            for found in leaves(one, f"{path}.{key}" if path else key)
        ]
    if isinstance(value, list):
        return [found for one in value for found in leaves(one, path + "[]")]
    return [(path, value)]


def check(spec: Any, fields: dict[str, type]) -> None:
    for path, value in leaves(spec):
        assert path in fields, path
        assert type(value) is fields[path], path
        if isinstance(value, dict):
            assert all(type(one) is str for one in value.values()), path


@pytest.mark.parametrize("name", FILES)
def test_generated_files_are_fresh(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == FILES[name](), (
        "run: python -m cluster.deploy.generate"
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_manifests_have_known_fields_of_the_right_types(layout: str) -> None:
    cluster, job = load(f"raycluster{layout}.yaml"), load(f"rayjob{layout}.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    check(cluster["spec"], CLUSTER)
    check(job["spec"], JOB)
    # the list above has nothing that is not used
    assert {path for path, _ in leaves(job["spec"])} == set(JOB)
    assert cluster["spec"]["authOptions"]["mode"] == "token"
    assert cluster["spec"]["autoscalerOptions"]["version"] in ("v1", "v2")
    modes = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    assert job["spec"]["submissionMode"] in modes


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rayVersions", "2.60.0"),
        ("rayVersion", 2.6),
        ("headGroupSpec.rayStartParams", {"num-cpus": 0}),
    ],
)
def test_the_check_finds_mistakes(path: str, value: Any) -> None:
    spec = load("raycluster.yaml")["spec"]
    *parents, last = path.split(".")
    place = spec
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(AssertionError, match=path):
        check(spec, CLUSTER)


def pods(spec: Any) -> list[Any]:
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def kubernetes(name: str = "raycluster.yaml") -> dict[str, Any]:
    """Groups of nodes, as Ray's autoscaler reads the manifest."""
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )
    from ray.autoscaler._private.util import validate_config

    cluster = load(name)
    cluster["metadata"]["namespace"] = "default"
    found = _derive_autoscaling_config_from_ray_cr(cluster)
    validate_config(found)
    return dict(found["available_node_types"])


def test_ray_s_autoscaler_reads_the_groups_from_the_manifest() -> None:
    groups = {
        name: (group["resources"].get("CPU"), group["resources"].get("GPU"))
        for name, group in kubernetes().items()
    }
    assert groups == {"headgroup": (0, 0), "learner": (40, 8), "rollout": (5, 1), "reward": (5, 1)}


def submitted(name: str = "rayjob.yaml") -> Config:
    """What the RayJob trains."""
    words = load(name)["spec"]["entrypoint"].split()
    found, overrides = parse(words[2:])
    assert found.resume == "auto"
    return configs.load(ROOT / found.config.relative_to("/app"), overrides)


@pytest.mark.parametrize(
    "groups",
    [kubernetes, lambda: load("ray-up.yaml")["available_node_types"]],
    ids=["kubernetes", "launcher"],
)
def test_each_role_fits_nodes_of_its_own_group_only_and_all_its_actors_do(
    groups: Callable[[], dict[str, Any]],
) -> None:
    config, offered = submitted(), groups()
    wanted = {
        "rollout": (config.rollout, config.rollout.workers),
        "learner": (config.learner, config.learner.ranks),
    }
    wanted["reward"] = (
        config.reward_workers,
        config.reward_workers.workers * len(config.reward_groups),
    )
    for name, (role, count) in wanted.items():
        need = bundle(roles.actor_options(role))
        fits = {
            group: int(min(has["resources"].get(one, 0) / amount for one, amount in need.items()))
            for group, has in offered.items()
        }
        assert [group for group, actors in fits.items() if actors] == [name]
        assert fits[name] * offered[name]["max_workers"] >= count


def test_kuberay_s_quotes_survive_the_shell() -> None:
    """KubeRay puts each parameter, as it is, into a line for bash."""
    for group in load("raycluster.yaml")["spec"]["workerGroupSpecs"]:
        (word,) = shlex.split(f"--resources={group['rayStartParams']['resources']}")
        assert json.loads(word.removeprefix("--resources=")) == {group["groupName"]: 1}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_pod_is_isolated_shares_the_storage_and_has_time_to_stop(layout: str) -> None:
    spec, job = (load(f"{kind}{layout}.yaml")["spec"] for kind in ("raycluster", "rayjob"))
    policy = load("network-policy.yaml")
    monitor = load("pod-monitor.yaml")
    claim = load("storage.yaml")
    grace = int(yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    for pod in pods(spec):
        labels = pod["metadata"]["labels"]
        for selector in (
            policy["spec"]["podSelector"],
            policy["spec"]["ingress"][0]["from"][0]["podSelector"],
            monitor["spec"]["selector"],
        ):
            assert selector["matchLabels"].items() <= labels.items()
        assert pod["spec"]["terminationGracePeriodSeconds"] > grace
        (container,) = pod["spec"]["containers"]
        assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in {
            port["name"] for port in container["ports"]
        }
        (volume,) = pod["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        drained = [
            float(one["value"])
            for one in container["env"]
            if one["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        ]
        assert len(drained) == (container["name"] == "ray-worker") and all(
            seconds < pod["spec"]["terminationGracePeriodSeconds"] for seconds in drained
        )
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert all(
        rule.get("ports") or "podSelector" in rule["from"][0] for rule in policy["spec"]["ingress"]
    )


def test_the_launcher_s_file_passes_ray_s_validator() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load("ray-up.yaml")
    validate_config(prepare_config(config))
    for command in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert command.startswith("RAY_AUTH_MODE=token ")
    assert any(target.endswith("/.ray/auth_token") for target in config["file_mounts"])
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(prepare_config(config | {"max_worker": 3}))


def below(place: dict[str, Any], key: str, schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What a part of the config's schema says of a key, in every component that has it."""
    if "$ref" in place:
        return below(schema["$defs"][place["$ref"].rpartition("/")[2]], key, schema)
    found = [
        one
        for branch in ("anyOf", "oneOf")
        for part in place.get(branch, [])
        for one in below(part, key, schema)
    ]
    own = place.get("items") if key.isdigit() else place.get("properties", {}).get(key)
    return [*found, own] if own else found


OF_PLUGINS = {"rewards.0.channel"}
"""Keys of the examples' own components."""


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(FOLDER.glob("*.yaml"))],
    ids=lambda path: path.name,
)
def test_commands_and_keys_that_are_named_exist(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, schema = path.read_text(encoding="utf-8"), Config.model_json_schema()
    commands = set(re.findall(r"(?:run\.py|^(?:uv run )?branchgrpo) ([a-z-]+)", text, re.MULTILINE))
    for command in commands - {"--help"}:
        with pytest.raises(SystemExit) as ended:
            parse([command, "--help"])
        assert ended.value.code == 0, command
    sections = "|".join(schema["properties"])
    dotted = re.findall(rf"(?:--|`)((?:{sections})\.[a-z_0-9.]+)", text)
    for key in {key for key in dotted if not key.endswith((".py", ".jsonl", ".json", ".md"))}:
        if key in OF_PLUGINS and path.name == "plugins.md":
            continue
        places = [schema]
        for part in key.rstrip(".").split("."):
            places = [one for place in places for one in below(place, part, schema)]
        assert places, key


def test_one_version_of_ray_everywhere() -> None:
    recipe = (FOLDER / "Containerfile").read_text(encoding="utf-8")
    (version,) = re.findall(r"^ARG RAY_VERSION=(\S+)$", recipe, re.MULTILINE)
    assert load("raycluster.yaml")["spec"]["rayVersion"] == version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (bounds,) = [
        entry
        for entry in project["tool"]["uv"]["constraint-dependencies"]
        if entry.startswith("ray>")
    ]
    low, high = (tuple(map(int, text.split("."))) for text in re.findall(r"[\d.]+", bounds))
    assert low <= tuple(map(int, version.split("."))) < high
    for _, sources in re.findall(r"^COPY (--\S+ )?(.*) \S+$", recipe, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
    for extra in re.findall(r"--extra (\S+)", recipe):
        assert extra in project["project"]["optional-dependencies"], extra


def test_commands_in_the_manifests_are_ours() -> None:
    words = load("rayjob.yaml")["spec"]["entrypoint"].split()
    assert (
        words[:3] == ["python", "/app/run.py", "train"]
        and (ROOT / words[3].removeprefix("/app/")).is_file()
    )
    images = {
        container["image"]
        for pod in pods(load("raycluster.yaml")["spec"])
        for container in pod["spec"]["containers"]
    }
    images |= {load("ray-up.yaml")["docker"]["image"]}
    (image,) = images
    assert f" -t {image} " in (FOLDER / "Containerfile").read_text(encoding="utf-8")
