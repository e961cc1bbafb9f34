"""The notebook of examples/ runs in a kernel of its own, with fewer iterations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
ITERATIONS = '"run.iterations": 20'


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    import nbformat

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]), prepend=":")
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert text.count(json.dumps(ITERATIONS)[1:-1]) == 1
    text = text.replace(json.dumps(ITERATIONS)[1:-1], json.dumps('"run.iterations": 2')[1:-1])
    found = nbformat.reads(text, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(found, timeout=800, kernel_name="python3", resources=resources).execute()
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "summary.json").read_text())["iterations"] == 2
    assert kinds(found) == kinds(json.loads(NOTEBOOK.read_text(encoding="utf-8")))


def kinds(notebook: Any) -> list[list[str]]:
    """What each cell shows: text or a picture; what libraries say is left out."""
    return [
        [
            "picture" if "image/png" in output.get("data", {}) else "text"
            for output in cell.get("outputs", [])
            if output.get("name") != "stderr"
        ]
        for cell in notebook["cells"]
    ]
