"""The packages that travel beside the tree to a machine that has torch and transformers, and no
network."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

NEEDED = (
    "diffusers",
    "importlib-metadata",
    "zipp",
    "peft",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-extensions",
    "typing-inspection",
    "safetensors",
    "xxhash",
    "rapidocr-onnxruntime",
    "open-clip-torch",
    "ftfy",
    "wcwidth",
)
"""In the versions that are installed here."""
LIMIT_MB = 64
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def download(folder: Path, python: str) -> float:
    """Their wheels for that Python on Linux; returns their MB. Raises SystemExit above what may
    travel."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{name}=={version(name)}" for name in NEEDED]
    target = [word for platform in PLATFORMS for word in ("--platform", platform)]
    target += ["--python-version", python, "--only-binary", ":all:", "--no-deps"]
    command = ["pip", "download", "--quiet", "--dest", str(folder), *target, *names]
    subprocess.run([sys.executable, "-m", *command] if _pip() else command, check=True)
    size = sum(path.stat().st_size for path in folder.glob("*.whl")) / 1e6
    if size > LIMIT_MB:
        raise SystemExit(f"wheels: expected at most {LIMIT_MB} MB, got {size:.1f} in {folder}")
    return size


def _pip() -> bool:
    """This Python has pip."""
    from importlib.util import find_spec

    return find_spec("pip") is not None


def unpack(folder: Path, target: Path) -> None:
    """All wheels of a folder, to be put on the path. Raises SystemExit where there are none."""
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise SystemExit(f"--wheels: expected *.whl in {folder}, found none")
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
