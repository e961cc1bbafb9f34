"""Encodings of records made once, before training: safetensors shards and a manifest.

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
from typing import TYPE_CHECKING, Any, Protocol

from branchgrpo.data.shards import DIGEST_BYTES, DIGESTS, TOO_LONG, digest
from branchgrpo.errors import UserError
from branchgrpo.files.safetensors_header import BadHeader, header
from branchgrpo.files.whole import write_whole
from branchgrpo.models.base import ModelOptions
from branchgrpo.models.files import json_file
from branchgrpo.models.pipeline_options import PipelineModel
from branchgrpo.models.texts import packed, padded, pair, seen, unwanted
from branchgrpo.service import Tasks
from branchgrpo.types import Conditioning, Sample

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
VERSION = 1
SHARD = 64
"""Prompts of one shard: 256 MB where each has 512 rows of 4,096 numbers in bfloat16."""

SAMPLE = 1 << 16
SHARD_NAME = re.compile(r"shard-[A-Za-z0-9_.-]{1,100}\.safetensors")


class EncoderPool(Protocol):
    """Those that encode prompts before training."""

    def tasks(self) -> Tasks:
        """A new set of pending tasks."""

    def encode(
        self, tasks: Any, samples: list[Sample], path: Path, then: Callable[[str, int], None]
    ) -> None:
        """Write a shard of encodings; `then` gets its name and how many records it has."""


def folder_of(model: PipelineModel) -> Path:
    """Where this model's encodings are: its name comes from the encoders' files and the text
    keys."""
    files = []
    # of pictures the autoencoder is an encoder too
    for part in (*model.text_parts, *(("vae",) if model.pictures_taken[1] else ())):
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
        digests = self._open(index).get_tensor(DIGESTS).numpy()
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
        rows = tensors[DIGESTS].shape[0] if DIGESTS in tensors and tensors[DIGESTS].shape else -1
        shapes = {name: (entry.dtype, entry.shape) for name, entry in tensors.items()}
        fits = (shapes.get(DIGESTS), shapes.get(TOO_LONG)) == (
            ("U8", (rows, DIGEST_BYTES)),
            ("U8", (rows,)),
        )
        if not fits or any(shape[:1] != (rows,) for _, shape in shapes.values()):
            raise UserError(
                f"model.encodings: expected {DIGESTS} [n, {DIGEST_BYTES}], {TOO_LONG} [n] "
                f"and arrays of n rows in {path}"
            )

    def missing(self, samples: Iterable[Sample]) -> list[Sample]:
        """What the encoders see of these records, negative prompts too, that is not here yet, each
        once, in the records' order."""
        found = dict[bytes, Sample]()
        for sample in samples:
            for shown in self._shown(sample):
                if (name := digest(shown)) not in self.where:
                    found.setdefault(name, shown)
        return list(found.values())

    def _shown(self, sample: Sample) -> list[Sample]:
        negative = [unwanted(self.model, sample)] if self.model.guided else []
        return [seen(self.model, sample), *negative]

    def commit(self, shard: str, count: int) -> None:
        """Name a finished shard in the manifest, beside those that other jobs may have added
        meanwhile."""
        if (self.folder / MANIFEST).is_file():
            for name, known in self._manifest()["shards"].items():
                if name not in self.shards:
                    self._add(name, known)
        self._add(shard, count)
        shards = {
            name: int(self._open(index).get_slice(DIGESTS).get_shape()[0])
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

    def truncated(self, samples: Sequence[Sample]) -> int:
        """How many of these were longer than the encoders take."""
        places = [self._place(seen(self.model, sample)) for sample in samples]
        return sum(int(self._open(shard).get_slice(TOO_LONG)[row]) for shard, row in places)

    def conditioning(self, samples: Sequence[Sample]) -> Conditioning:
        """Of P records, with the negative prompt beside each where the model is guided. Raises
        UserError for what is not here."""
        rows = self._rows([seen(self.model, sample) for sample in samples])
        if self.model.guided:
            rows = pair(rows, self._rows([unwanted(self.model, sample) for sample in samples]))
        return packed(rows, len(samples))

    def _place(self, shown: Sample) -> tuple[int, int]:
        place = self.where.get(digest(shown))
        if place is None:
            raise UserError(
                f"model.encodings: expected the encoding of {shown.prompt[:60]!r} in "
                f"{self.folder}, found none: branchgrpo encode makes what is missing"
            )
        return place

    def _rows(self, shown: Sequence[Sample]) -> dict[str, Tensor]:
        rows: dict[str, list[Tensor]] = {}
        for shard, row in map(self._place, shown):
            file = self._open(shard)
            for name in set(file.keys()) - {DIGESTS, TOO_LONG}:
                array = file.get_slice(name)[row : row + 1]
                # older shards have masks of integers
                rows.setdefault(name, []).append(
                    array if array.is_floating_point() else array.float()
                )
        return {name: _stacked(values) for name, values in rows.items()}


def encode_missing(
    pool: EncoderPool, store: Encodings, samples: Iterable[Sample], told: Callable[[int, int], None]
) -> int:
    """Have a pool of actors.encoder.Encoder encode what `store` lacks, shard by shard; `told` hears
    (done, all) of them.

    Returns how many were encoded. Shards that finished before an interruption are kept.
    """
    missing = store.missing(samples)
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
