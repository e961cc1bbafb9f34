"""The command new: a component of one's own to begin with, and its test."""

from __future__ import annotations

import keyword
import sys
from pathlib import Path
from string import Template

from branchgrpo.errors import UserError

KINDS = {"reward": "rewards.0", "method": "method", "model": "model"}
"""What can be begun, and the section of a config that names it."""

_TEMPLATES = Path(__file__).resolve().parents[1] / "assets" / "new"


def new(kind: str, name: str, folder: Path) -> int:
    """Write NAME.py, a component that works, and test_NAME.py, which passes, into a folder.

    Raises UserError for a name that Python could not import, and where either file exists.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name in sys.stdlib_module_names:
        raise UserError(f"new: expected a name for a Python module, as my_{kind}, got {name!r}")
    class_name = "".join(part[:1].upper() + part[1:] for part in name.split("_")) or "Own"
    files = {
        folder / f"{name}.py": f"{kind}.txt",
        folder / f"test_{name}.py": f"test_{kind}.txt",
    }
    for path in files:
        if path.exists():
            raise UserError(f"new: expected no file {path}, which exists: nothing was written")
    for path, template in files.items():
        text = (_TEMPLATES / template).read_text(encoding="utf-8")
        text = Template(text).substitute(name=name, class_name=class_name)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"new: cannot write {path}: {error.strerror}") from error
    member = name if kind == "reward" else class_name
    print(f"wrote {name}.py and test_{name}.py: change them, then pytest test_{name}.py")
    print(f"train with it: branchgrpo train --{KINDS[kind]}.name ./{name}.py:{member}{_more(kind)}")
    return 0


def _more(kind: str) -> str:
    """Keys that a section must have beside its name."""
    return " --model.path FOLDER" if kind == "model" else ""
