"""What every component keeps, of each table and of a plug-in of each kind: its options are
described and checked, it is written and read back, it travels, and it works on a CPU.

Some rewards are not built here, for want of weights, an endpoint or records that suit them:
colour, geneval, hpsv3, image_reward, judge and video_align, which tests of their own build
(tests/unit/rewards).
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from support.own_parts import MEMBERS, own_parts
from support.tables import EVERY, SECTIONS, component, loaded

from branchgrpo.config import load as config
from branchgrpo.config.registry import TABLES
from branchgrpo.errors import UserError
from branchgrpo.report.sinks import MetricsLog, check_sinks, open_sinks
from branchgrpo.sinks import base


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_parts(tmp_path_factory.mktemp("own"))


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A component's class and those of the sections in it."""
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation)


def refused(own: Path, kind: str, name: str, **more: str) -> str:
    with pytest.raises(UserError) as caught:
        loaded(own, kind, name, **more)
    assert "\n" not in str(caught.value), caught.value
    return str(caught.value)


def test_every_table_has_a_plug_in_here() -> None:
    assert set(MEMBERS) == set(TABLES) == set(SECTIONS)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_options_are_described_and_the_class_says_what_it_is(
    own: Path, kind: str, name: str
) -> None:
    table, found = TABLES[kind], TABLES[kind].find(name.replace("own:", f"{own}:"))
    assert issubclass(found, table.base) and found.__doc__
    assert found.model_fields["name"].default == name.replace("own:", f"{own}:")
    assert found.model_config["extra"] == "forbid" and found.model_config["frozen"]
    nameless = [
        f"{model.__name__}.{key}"
        for model in sections(found)
        for key, field in model.model_fields.items()
        if not field.description
    ]
    assert not nameless
    assert getattr(found, table.must) is not getattr(table.base, table.must)


def test_tables_are_imported_without_heavy_packages() -> None:
    code = (
        "import sys; from branchgrpo.config.registry import TABLES; "
        "[table.find(name) for table in TABLES.values() for name in table.shipped]; "
        "print([m for m in ('torch', 'ray', 'diffusers', 'transformers', 'onnxruntime', "
        "'open_clip') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_config_with_it_is_written_read_back_and_sent(
    own: Path, kind: str, name: str, tmp_path: Path
) -> None:
    found = loaded(own, kind, name)
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(found), encoding="utf-8")
    assert config.load(path) == found == pickle.loads(pickle.dumps(found))
    assert component(found, kind).called == name.removeprefix("own:")
    with pytest.raises(ValueError, match="frozen"):
        component(found, kind).name = "other"


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_bad_keys_are_one_line_that_names_them(own: Path, kind: str, name: str) -> None:
    section, part = SECTIONS[kind], component(loaded(own, kind, name), kind)
    found = refused(own, kind, name, nonsense="1")
    assert found.startswith(f"--{section}.nonsense: unknown key of "), found
    for key, field in type(part).model_fields.items():
        if key == "name" or field.annotation is str or not isinstance(getattr(part, key), float):
            continue
        found = refused(own, kind, name, **{key: "many"})
        assert found.startswith(f"--{section}.{key}: expected "), found
        assert found.endswith("got 'many'"), found


def test_files_that_are_missing_are_one_line(own: Path, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    for kind in ("rewards", "models"):
        for name in TABLES[kind].shipped:
            part = component(loaded(own, kind, name), kind)
            keys = [key for key in (*part.file_keys, "path") if key in type(part).model_fields]
            if not keys:
                continue
            with pytest.raises(UserError) as caught:
                part.model_copy(update=dict.fromkeys(keys, gone)).check()
            assert "\n" not in str(caught.value), caught.value
            assert gone in str(caught.value) and "expected" in str(caught.value), caught.value


# Sinks. W&B and MLflow are opened in tests/unit/report/test_metrics.py, with the real packages.


def test_a_sink_of_ones_own_gets_the_metrics(own: Path, tmp_path: Path) -> None:
    found = loaded(own, "sinks", "own:Lines", file="mine.txt")
    check_sinks(found.all_sinks)
    with MetricsLog(tmp_path, open_sinks(found.all_sinks, tmp_path, config.plain(found))) as log:
        log.write(1, {"b": 2.0, "a": 1.0})
    assert (tmp_path / "mine.txt").read_text() == "1 a b\ndone\n"
    with (
        pytest.raises(RuntimeError, match="boom"),
        MetricsLog(tmp_path, open_sinks(found.all_sinks, tmp_path, {})),
    ):
        raise RuntimeError("boom")
    assert (tmp_path / "mine.txt").read_text().endswith("failed\n")


@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "sinks"])
def test_sinks_without_their_package_are_one_line(
    name: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    found = loaded(own, "sinks", name)
    if not component(found, "sinks").package:
        return check_sinks(found.all_sinks)
    with pytest.raises(UserError, match=r"^sinks\.0: expected the package [^\n]+$"):
        check_sinks(found.all_sinks)
