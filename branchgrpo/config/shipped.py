"""The configs that come with the product: in a checkout the folder `configs`, in a wheel package
data."""

from __future__ import annotations

from pathlib import Path

from branchgrpo.config import kinds
from branchgrpo.errors import UserError

_PACKAGED = Path(__file__).resolve().parents[1] / "configs"
FOLDER = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[2] / "configs"

QUICKSTART = FOLDER / "quickstart.yaml"
PRESETS = FOLDER / "methods"
"""A method by one line."""


def names() -> list[str]:
    """Configs that can be named without a path."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def presets() -> list[str]:
    """Names of all presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def config_file(given: str | Path) -> Path:
    """A YAML file of the user's own, or else the shipped config of that name: a folder that is
    called so doesn't hide it. Raises UserError for a bare name that is neither."""
    path = Path(given).expanduser()
    bare = path.parent == Path() and path.suffix.lower() not in (".yaml", ".yml")
    if (path.exists() and not path.is_dir()) or not bare:
        return path
    if str(given) not in names():
        raise UserError(
            f"config: expected a YAML file or one of {', '.join(names())}, got "
            f"{str(given)!r}{kinds.closest(str(given), names())}"
        )
    return FOLDER / f"{given}.yaml"
