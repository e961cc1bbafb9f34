"""The product as a person installs it: a wheel in an environment of its own, started in an empty
folder, where neither this checkout nor PYTHONPATH is in sight."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "branchgrpo", "actors", "cluster", "configs")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
SHRUNK = {
    "run.iterations": "2",
    "cluster.dashboard": "false",
    "rollout.workers": "1",
    "rollout.prompts": "1",
    "rollout.cpus": "0.25",
    "reward_workers.cpus": "0.25",
    "learner.cpus": "0.25",
    "evaluation.prompts": "4",
    "evaluation.prompts_between": "2",
    "evaluation.pictures": "2",
}
LISTED = """
from branchgrpo.config.load import load
from branchgrpo.config.shipped import QUICKSTART, config_file, names, presets
for name in names():
    load(config_file(name))
    print(name)
for preset in presets():
    load(QUICKSTART, preset=preset)
    print(preset)
"""
ON_RAY = """
import json
import cluster.session, ray

cluster.session.start("local", 80, False)

@ray.remote(num_cpus=0)
class Worker:
    def files(self):
        import actors.rollout, branchgrpo, branchgrpo.config.shipped, cluster.worker_pool
        here = actors.rollout, branchgrpo, branchgrpo.config.shipped, cluster.worker_pool
        return [module.__file__ for module in here]

print(json.dumps(ray.get(Worker.remote().files.remote())))
cluster.session.stop()
"""


@dataclass(frozen=True)
class Installed:
    """The environment, and an empty folder to work in."""

    environment: Path
    empty: Path

    def run(self, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """A program of the environment, as a person with an empty shell starts it."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "RAY_", "VIRTUAL_ENV", "UV_"))
        }
        program, *arguments = command
        return subprocess.run(
            [str(self.environment / "bin" / program), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.empty,
            env=kept | {"HF_HUB_OFFLINE": "1", "HOME": str(self.empty.with_name("home"))},
        )

    def says(self, *command: str, timeout: float = 300) -> str:
        done = self.run(*command, timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, without its dependencies: those are this environment's, behind it on the path."""
    place = tmp_path_factory.mktemp("wheel")
    source, environment, empty = place / "source", place / "environment", place / "empty"
    for folder in (source, empty, place / "home"):
        folder.mkdir()
    for name in SOURCES:  # a build leaves its traces where it runs
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-c", BUILD, str(place)], cwd=source, check=True, timeout=600)
    (wheel,) = place.glob("*.whl")
    shutil.rmtree(source)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=600)
    found = Installed(environment, empty)
    found.says("python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel))
    (packages,) = environment.glob("lib/python*/site-packages")
    # .pth files over there are not read: an editable install of the checkout stays out of sight
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return found


def test_what_is_imported_is_what_was_installed(installed: Installed) -> None:
    modules = "actors, branchgrpo, branchgrpo.config.shipped, cluster"
    code = f"import {modules}; print(*(m.__file__ for m in ({modules})), sep='\\n')"
    files = installed.says("python", "-c", code).split()
    assert len(files) == 4
    for file in files:
        assert installed.environment in Path(file).parents


def test_presets_configs_prompts_and_rewards_are_there(installed: Installed) -> None:
    from branchgrpo import __version__
    from branchgrpo.config.shipped import names, presets

    assert installed.says("branchgrpo", "--version") == f"branchgrpo {__version__}\n"
    assert installed.says("python", "-m", "branchgrpo", "--version").endswith(f"{__version__}\n")
    shown = yaml.safe_load(installed.says("branchgrpo", "config", "flux.1-dev-1node"))
    assert shown["model"]["path"] == "/models/FLUX.1-dev" and shown["method"]["name"]
    assert installed.says("python", "-c", LISTED).splitlines() == [*names(), *presets()]
    assert "2,772 different" in installed.says("branchgrpo", "prompts", "quickstart")
    strange = installed.run("branchgrpo", "train", "flux.1-dev-1nod")
    assert strange.returncode == 2 and "did you mean flux.1-dev-1node?" in strange.stderr
    assert not list(installed.empty.iterdir())


@pytest.mark.slow
def test_the_quick_start_trains_in_an_empty_folder_with_ones_own_reward_beside_its_own(
    installed: Installed,
) -> None:
    """The second reward is a function of a file in that folder, which workers get by themselves."""
    installed.says("branchgrpo", "new", "reward", "warmth")
    keys = [text for key, value in SHRUNK.items() for text in (f"--{key}", value)]
    own = ["--rewards.1.name", "./warmth.py:warmth", "--rewards.1.weight", "0.5"]
    told = installed.says("branchgrpo", "train", *keys, *own, timeout=600)
    (folder,) = (installed.empty / "runs").iterdir()
    assert str(folder.relative_to(installed.empty)) in told
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["iterations"] == 2 and "ocr/exact" in summary["held_out"]
    assert 0.3 < summary["held_out"]["warmth/score"]["before"] < 0.7
    # what was run is written so that it loads from anywhere
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["rewards"][1]["name"] == f"{installed.empty}/warmth.py:warmth"
    shown = installed.says("branchgrpo", "config", str(folder / "config.yaml"))
    assert yaml.safe_load(shown) == written
    assert (folder / "weights" / "model_index.json").is_file()


@pytest.mark.slow
def test_actors_import_what_was_installed(installed: Installed) -> None:
    files = json.loads(installed.says("python", "-c", ON_RAY, timeout=600).splitlines()[-1])
    assert len(files) == 4
    for file in files:
        assert installed.environment in Path(file).parents
