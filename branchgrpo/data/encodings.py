"""Text encodings made once, before training: safetensors shards and a manifest.

    FOLDER/manifest.json            model, text keys, and every finished shard with its count
    FOLDER/shard-NAME.safetensors   arrays of n prompts, their digests [n, 16], and which were too
    long [n]

A prompt is found by the digest of its text, so lists may change order, grow or overlap. A shard
counts once the manifest names it; an interrupted run goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from branchgrpo.errors import UserError
from branchgrpo.files.safetensors_header import BadHeader, header
from branchgrpo.files.whole import write_whole, written_aside
from branchgrpo.models.base import ModelOptions
from branchgrpo.models.files import json_file
from branchgrpo.models.pipeline import padded, pair
from branchgrpo.models.pipeline_options import PipelineModel
from branchgrpo.models.texts import packed
from branchgrpo.service import EncoderPool
from branchgrpo.types import Conditioning

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
VERSION = 1
SHARD = 64
"""Prompts of one shard: 256 MB where each has 512 rows of 4,096 numbers in bfloat16."""

SAMPLE = 1 << 16
SHARD_NAME = re.compile(r"shard-[A-Za-z0-9_.-]{1,100}\.safetensors")
DIGEST_BYTES = 16
_DIGESTS, _TOO_LONG = "digests", "too_long"


def digest(text: str) -> bytes:
    """DIGEST_BYTES that name a text."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def folder_of(model: PipelineModel) -> Path:
    """Where this model's encodings are: its name comes from the encoders' files and the text
    keys."""
    files = []
    for part in model.text_parts:
        root = model.folder() / part
        files += [
            (str(path.relative_to(model.folder())), path.stat().st_size, _sample(path))
            for path in sorted(root.rglob("*"))
            if path.is_file()
        ]
    name = hashlib.sha256(
        json.dumps([VERSION, model.pipeline, files, model.text_keys()]).encode()
    ).hexdigest()[:16]
    return Path(model.encodings).expanduser() / name


def _sample(path: Path) -> str:
    """Digest of a file's beginning, middle and end: fine-tuned weights have the same size, but not
    the same bytes."""
    found, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        for place in (0, size // 2, max(0, size - SAMPLE)):
            file.seek(place)
            found.update(file.read(SAMPLE))
    return found.hexdigest()


class Encodings:
    """Reads and extends one folder. Shards are opened on first use; a prompt's row is read
    alone."""

    def __init__(self, folder: Path, model: PipelineModel):
        self.folder, self.model = folder, model
        self.shards: list[str] = []
        self.where: dict[bytes, tuple[int, int]] = {}  # digest → (shard, row)
        self.files: dict[int, Any] = {}
        if (folder / MANIFEST).is_file():
            for shard, count in self._manifest()["shards"].items():
                self._add(shard, count)

    @classmethod
    def open(cls, model: ModelOptions) -> Encodings:
        """Of this model. Raises UserError when its folder is damaged."""
        if not isinstance(model, PipelineModel):
            raise TypeError(
                f"expected a model that encodes text by itself, got {type(model).__name__}"
            )
        if (root := Path(model.encodings).expanduser()).exists() and not root.is_dir():
            raise UserError(f"model.encodings: expected a folder, got the file {root}")
        return cls(folder_of(model), model)

    def _manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        found = json_file("model.encodings", path)
        if found.get("version") != VERSION:
            raise UserError(
                f"model.encodings: expected version {VERSION} in {path}, got "
                f"{str(found.get('version'))[:60]!r}"
            )
        shards = found.get("shards")
        if not isinstance(shards, dict) or not all(
            SHARD_NAME.fullmatch(name) and type(count) is int and count >= 0
            for name, count in shards.items()
        ):
            raise UserError(
                f"model.encodings: expected shards in {path}, shard-NAME.safetensors and "
                "their counts"
            )
        return found

    def _add(self, shard: str, count: int) -> None:
        index = len(self.shards)
        self.shards.append(shard)
        digests = self._open(index).get_tensor(_DIGESTS).numpy()
        if len(digests) != count:
            raise UserError(
                f"model.encodings: expected {count} prompts in {self.folder / shard}, got "
                f"{len(digests)}"
            )
        self.where.update((row.tobytes(), (index, place)) for place, row in enumerate(digests))

    def _open(self, shard: int) -> Any:
        from safetensors import SafetensorError, safe_open

        if shard not in self.files:
            path = self.folder / self.shards[shard]
            self._check_shard(path)
            try:
                self.files[shard] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"model.encodings: expected the safetensors file {path}, which cannot "
                    f"be read: {error}"
                ) from error
        return self.files[shard]

    @staticmethod
    def _check_shard(path: Path) -> None:
        """Raises UserError unless it has digests, which texts were too long, and arrays of as many
        rows."""
        try:
            tensors = header(path).tensors
        except (OSError, BadHeader) as error:
            what = getattr(error, "strerror", None) or error
            raise UserError(
                f"model.encodings: expected the safetensors file {path}, which cannot be "
                f"read: {what}"
            ) from error
        rows = tensors[_DIGESTS].shape[0] if _DIGESTS in tensors and tensors[_DIGESTS].shape else -1
        shapes = {name: (entry.dtype, entry.shape) for name, entry in tensors.items()}
        fits = (shapes.get(_DIGESTS), shapes.get(_TOO_LONG)) == (
            ("U8", (rows, DIGEST_BYTES)),
            ("U8", (rows,)),
        )
        if not fits or any(shape[:1] != (rows,) for _, shape in shapes.values()):
            raise UserError(
                f"model.encodings: expected {_DIGESTS} [n, {DIGEST_BYTES}], {_TOO_LONG} [n] "
                f"and arrays of n rows in {path}"
            )

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Texts that are not here yet, each once, in their order."""
        return [text for text in dict.fromkeys(texts) if digest(text) not in self.where]

    def commit(self, shard: str, count: int) -> None:
        """Name a finished shard in the manifest, beside those that other jobs may have added
        meanwhile."""
        if (self.folder / MANIFEST).is_file():
            for name, known in self._manifest()["shards"].items():
                if name not in self.shards:
                    self._add(name, known)
        self._add(shard, count)
        shards = {
            name: int(self._open(index).get_slice(_DIGESTS).get_shape()[0])
            for index, name in enumerate(self.shards)
        }
        manifest = {
            "version": VERSION,
            "model": self.model.path,
            "pipeline": self.model.pipeline,
            "keys": self.model.text_keys(),
            "shards": shards,
        }
        write_whole(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")

    def truncated(self, prompts: Sequence[str]) -> int:
        """How many of these were longer than the encoders take."""
        places = [self._place(prompt) for prompt in prompts]
        return sum(int(self._open(shard).get_slice(_TOO_LONG)[row]) for shard, row in places)

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """Of P prompts, with the negative prompt beside each where the model is guided. Raises
        UserError for texts that are not here."""
        rows = self._rows(prompts)
        if self.model.guided:
            rows = pair(rows, self._rows([self.model.negative_prompt]))
        return packed(rows, len(prompts))

    def _place(self, text: str) -> tuple[int, int]:
        place = self.where.get(digest(text))
        if place is None:
            raise UserError(
                f"model.encodings: expected the encoding of {text[:60]!r} in {self.folder}, "
                "found none: branchgrpo encode makes what is missing"
            )
        return place

    def _rows(self, texts: Sequence[str]) -> dict[str, Tensor]:
        rows: dict[str, list[Tensor]] = {}
        for shard, row in (self._place(text) for text in texts):
            file = self._open(shard)
            for name in set(file.keys()) - {_DIGESTS, _TOO_LONG}:
                array = file.get_slice(name)[row : row + 1]
                # older shards have masks of integers
                rows.setdefault(name, []).append(
                    array if array.is_floating_point() else array.float()
                )
        return {name: _stacked(values) for name, values in rows.items()}


def encode_missing(
    pool: EncoderPool, store: Encodings, texts: Iterable[str], told: Callable[[int, int], None]
) -> int:
    """Have a pool of actors.encoder.Encoder encode what `store` lacks, shard by shard; `told` hears
    (done, all) texts.

    Returns how many were encoded. Shards that finished before an interruption are kept.
    """
    missing = store.missing(texts)
    tasks, done = pool.tasks(), 0

    def finished(shard: str, count: int) -> None:
        nonlocal done
        store.commit(shard, count)
        done += count
        told(done, len(missing))

    for first in range(0, len(missing), SHARD):
        part = missing[first : first + SHARD]
        name = hashlib.blake2b(b"".join(map(digest, part)), digest_size=8).hexdigest()
        path = (store.folder / f"shard-{name}.safetensors").resolve()
        pool.encode(tasks, part, path, then=finished)
    tasks.run()
    return len(missing)


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Rows [1, …] of one text each as one array; shorter texts are padded with zeros at the
    end."""
    import torch

    if rows[0].ndim > 1:
        width = max(row.shape[1] for row in rows)
        rows = [padded(row, width) for row in rows]
    return torch.cat(list(rows))


def write_shard(
    path: Path, texts: Sequence[str], arrays: dict[str, Any], too_long: Sequence[bool]
) -> None:
    """Write tensors [n, …] of n texts, so that the file is there whole or not at all."""
    import torch
    from safetensors.torch import save_file

    digests = torch.from_numpy(
        np.frombuffer(b"".join(digest(text) for text in texts), np.uint8)
        .reshape(-1, DIGEST_BYTES)
        .copy()
    )
    tensors = {name: array.detach().cpu().contiguous() for name, array in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors |= {_DIGESTS: digests, _TOO_LONG: torch.tensor(too_long, dtype=torch.uint8)}
    with written_aside(path) as partial:
        save_file(tensors, partial)
