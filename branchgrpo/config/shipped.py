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
    """Configs that can be named without a path; those of a folder, as paper/mix, come last."""
    plain = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    return plain + sorted(
        f"{path.parent.name}/{path.stem}"
        for path in FOLDER.glob("*/*.yaml")
        if path.parent != PRESETS
    )


def presets() -> list[str]:
    """Names of all presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def config_file(given: str | Path) -> Path:
    """A YAML file of the user's own, or else the shipped config of that name: a folder that is
    called so doesn't hide it. Raises UserError for a name that is neither."""
    path, name = Path(given).expanduser(), str(given)
    if (path.exists() and not path.is_dir()) or path.suffix.lower() in (".yaml", ".yml"):
        return path
    if name in names():
        return FOLDER / f"{name}.yaml"
    hint = kinds.closest(name, names())
    if path.parent != Path() and not hint:
        return path
    raise UserError(
        f"config: expected a YAML file or one of {', '.join(names())}, got {name!r}{hint}"
    )
