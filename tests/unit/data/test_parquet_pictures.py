"""Pictures in the cells of parquet files, as people and the package datasets write them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from branchgrpo.data import prompts
from branchgrpo.types import Sample


def png(grey: int) -> bytes:
    file = BytesIO()
    Image.new("L", (3, 2), grey).save(file, "PNG")
    return file.getvalue()


BYTES = [png(10 * number) for number in range(5)]
STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
FORMS: dict[str, tuple[pyarrow.DataType, list[Any]]] = {
    "bytes": (pyarrow.binary(), [BYTES[0], None, b"", BYTES[3], BYTES[4]]),
    "large": (pyarrow.large_binary(), [BYTES[0], None, None, BYTES[3], BYTES[4]]),
    "datasets": (
        STRUCT,
        [
            {"bytes": BYTES[0], "path": "x.png"},
            None,
            {"bytes": None, "path": None},
            {"bytes": None, "path": "3.png"},
            {"bytes": BYTES[4], "path": None},
        ],
    ),
    "lists": (
        pyarrow.list_(pyarrow.binary()),
        [[BYTES[0], BYTES[1]], None, [], [BYTES[3]], [None, BYTES[4]]],
    ),
    "lists of datasets": (
        pyarrow.list_(STRUCT),
        [
            [{"bytes": BYTES[0], "path": ""}, {"bytes": BYTES[1], "path": None}],
            None,
            [],
            [{"bytes": b"", "path": "3.png"}],
            [{"bytes": BYTES[4], "path": "y"}],
        ],
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_pictures_are_read_with_their_record(tmp_path: Path, form: str, rows: int) -> None:
    kind, cells = FORMS[form]
    (tmp_path / "3.png").write_bytes(BYTES[3])
    table = {"text": ["a", "b", None, "d", "e"], "image": pyarrow.array(cells, kind)}
    table |= {"n": [1, 2, 3, 4, 5], "raw": pyarrow.array([b"x"] * 5)}
    path = tmp_path / "list.parquet"
    parquet.write_table(pyarrow.table(table), path, rows)
    found = prompts.read("prompts", str(path))
    lists = form.startswith("lists")
    wanted = [BYTES[:2] if lists else BYTES[:1], [], BYTES[3:4], BYTES[4:]]
    for order in (range(4), (3, 0, 2, 1)):
        for place in order:
            sample = found[place]
            assert [picture.read() for picture in sample.images] == wanted[place]
            assert sample.metadata == {"n": found.number(place)}  # other bytes are nobody's
    assert [sample.prompt for sample in found] == ["a", "b", "d", "e"]
    assert [found.number(place) for place in range(4)] == [1, 2, 4, 5]


def test_rows_of_one_text_with_other_pictures_differ(tmp_path: Path) -> None:
    table = {"text": ["make it blue"] * 2, "images": [BYTES[0], BYTES[1]]}
    parquet.write_table(pyarrow.table(table), tmp_path / "list.parquet")
    found = prompts.read("prompts", str(tmp_path / "list.parquet"))
    assert len(found) == 2 and found.repeated == 0
    path = tmp_path / "list.parquet"
    assert [sample.images[0].path for sample in found] == [
        f"{path}: images[0] of row {row}" for row in (1, 2)
    ]


def test_a_picture_is_opened_upright_in_rgb(tmp_path: Path) -> None:
    """A camera's file with its long side upright is stored lying, and says so (Exif 6: turned by
    90°)."""
    lying = Image.new("RGB", (4, 2), "white")
    lying.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "turned.png", exif=exif)
    table = {"text": ["a", "b"], "image": [(tmp_path / "turned.png").read_bytes(), BYTES[2]]}
    parquet.write_table(pyarrow.table(table), tmp_path / "list.parquet")
    turned, grey = list(prompts.read("prompts", str(tmp_path / "list.parquet")))
    picture = turned.images[0].open()
    assert picture.size == (2, 4) and picture.getpixel((1, 0)) == (255, 0, 0)
    assert grey.images[0].open().getpixel((0, 0)) == (20, 20, 20)


def test_text_in_the_column_of_pictures_is_a_path(tmp_path: Path) -> None:
    table = {"text": ["a", "b"], "image": ["a.png", None]}
    parquet.write_table(pyarrow.table(table), tmp_path / "list.parquet")
    first, second = list(prompts.read("prompts", str(tmp_path / "list.parquet")))
    assert first.images[0].path == str(tmp_path / "a.png")
    assert second == Sample(prompt="b")
