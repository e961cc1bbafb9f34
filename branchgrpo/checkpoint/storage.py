"""Where checkpoints lie: a local or shared folder, or any fsspec URL. What a commit is on each.

A folder's checkpoint is written under another name, synced, and renamed. Object stores rename
nothing: there the files come first, and the manifest, put last, makes them a checkpoint.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from uuid import uuid4

from branchgrpo.errors import UserError, as_os_errors, one_line
from branchgrpo.files.regular import opened

MANIFEST = "manifest.json"
DRAFT = ".draft-"


class Storage(Protocol):
    """A folder. Names are of its direct children. Raises OSError."""

    where: str

    def prepare(self, key: str) -> None:
        """Make the folder; UserError, naming the config key, when it cannot be written."""

    def child(self, name: str) -> Storage:
        """A folder in it."""

    def names(self) -> list[str]:
        """Of everything in it; none when it doesn't exist."""

    def size(self, file: str) -> int:
        """In bytes. OSError for what is no regular file, symbolic links too."""

    def open(self, file: str) -> AbstractContextManager[BinaryIO]:
        """For reading, at once: OSError for what is no regular file, symbolic links too, and when
        reading fails."""

    def claim(self, name: str) -> None:
        """Take a name that no one else has then, for good; makes the folder, and an empty file of
        that name, perhaps with more after a point. FileExistsError when others have it, or want it
        at the same time."""

    def write(self, file: str, data: bytes) -> None:
        """A new file, for good when this returns."""

    def stream(self, file: str) -> AbstractContextManager[BinaryIO]:
        """A new file that is written bit by bit, for good when the context ends without an
        error."""

    def drafts(self) -> list[str]:
        """Names of checkpoints that are not complete."""

    def complete(self, name: str) -> bool:
        """It is no draft."""

    def draft(self, name: str) -> Storage:
        """Make the folder in which checkpoint `name` is to be written."""

    def drafted(self, name: str) -> Storage:
        """That folder, which another process has made."""

    def commit(self, name: str, manifest: bytes, fence: Callable[[], None]) -> None:
        """Make a draft a checkpoint, unless `fence`, which is called directly before, raises."""

    def discard(self, name: str) -> None:
        """Remove a draft; what cannot be removed is left to the next sweep."""

    def remove(self, name: str) -> None:
        """Delete a checkpoint. Killed at any point, it leaves the whole or a draft."""


class Local:
    """A folder on a disk or on shared storage with atomic rename."""

    def __init__(self, root: Path):
        self.root, self.where = root, str(root)

    def prepare(self, key: str) -> None:
        trial = self.root / _trial()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            trial.touch()
            trial.unlink(missing_ok=True)
        except OSError as error:  # a file exists there, no right, a read-only disk …
            raise UserError(
                f"{key}: expected a folder that can be written, got {self.root}: {error.strerror}"
            ) from error

    def child(self, name: str) -> Local:
        return Local(self.root / name)

    def names(self) -> list[str]:
        return os.listdir(self.root) if self.root.is_dir() else []

    def size(self, file: str) -> int:
        with self.open(file) as source:
            return os.fstat(source.fileno()).st_size

    def open(self, file: str) -> BinaryIO:
        return opened(self.root / file, follow=False)

    def claim(self, name: str) -> None:
        self.root.mkdir(exist_ok=True)
        self.write(name, b"")  # opens it exclusively
        self.sync()

    def write(self, file: str, data: bytes) -> None:
        with self.stream(file) as target:
            target.write(data)

    @contextmanager
    def stream(self, file: str) -> Iterator[BinaryIO]:
        with open(self.root / file, "xb") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())

    def drafts(self) -> list[str]:
        return [name.removeprefix(DRAFT) for name in self.names() if name.startswith(DRAFT)]

    def complete(self, name: str) -> bool:
        return True

    def draft(self, name: str) -> Local:
        folder = self.drafted(name)
        folder.root.mkdir()
        return folder

    def drafted(self, name: str) -> Local:
        return self.child(DRAFT + name)

    def commit(self, name: str, manifest: bytes, fence: Callable[[], None]) -> None:
        draft = self.drafted(name)
        draft.write(MANIFEST, manifest)
        draft.sync()
        fence()
        os.rename(draft.root, self.root / name)
        self.sync()

    def discard(self, name: str) -> None:
        shutil.rmtree(self.root / (DRAFT + name), ignore_errors=True)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):  # another writer was faster
            os.rename(self.root / name, self.root / (DRAFT + name))
        self.discard(name)

    def sync(self) -> None:
        """Make the folder's entries last."""
        handle = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            # some network file systems cannot sync a folder, and say so
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(handle)


class Remote:
    """A fsspec URL. fsspec and the protocol's own package are needed only here."""

    def __init__(self, fs: Any, root: str, where: str):
        self.fs = fs
        self.root = root.rstrip("/")
        self.where = where.rstrip("/")

    @classmethod
    def at(cls, key: str, url: str) -> Remote:
        """Raises UserError for a protocol that fsspec does not know, or whose package is
        missing."""
        import fsspec

        try:
            fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UserError(
                f"{key}: expected a folder or an URL that fsspec can open, got {url}: "
                f"{one_line(error)}"
            ) from error
        return cls(fs, root, url)

    def prepare(self, key: str) -> None:
        trial = f"{self.root}/{_trial()}"
        try:
            self._ask("makedirs", self.root, exist_ok=True)
            self._ask("pipe_file", trial, b"")
            self._ask("rm_file", trial)
        except OSError as error:  # no credentials, no host, no right …
            raise UserError(
                f"{key}: expected an URL that can be written, got {self.where}: {one_line(error)}"
            ) from error

    def child(self, name: str) -> Remote:
        return Remote(self.fs, f"{self.root}/{name}", f"{self.where}/{name}")

    def names(self) -> list[str]:
        self.fs.invalidate_cache()  # other machines write here
        try:
            return [
                path.rstrip("/").rpartition("/")[2]
                for path in self._ask("ls", self.root, detail=False)
            ]
        except FileNotFoundError:
            return []

    def size(self, file: str) -> int:
        found = self._ask("info", f"{self.root}/{file}")
        if found.get("type") != "file" or found.get("islink"):
            raise OSError(
                errno.EINVAL,
                f"it is {'a symbolic link' if found.get('islink') else found.get('type')}, "
                "not a regular file",
            )
        if not isinstance(found.get("size"), int):  # some web servers
            raise OSError(errno.EINVAL, "its size is not known")
        return int(found["size"])

    @contextmanager
    def open(self, file: str) -> Iterator[BinaryIO]:
        self.size(file)  # opening a FIFO would wait for ever
        with (
            self._ask("open", f"{self.root}/{file}", "rb") as source,
            as_os_errors(f"read {self.root}/{file}"),
        ):
            yield source

    def claim(self, name: str) -> None:
        """fsspec does not promise exclusive creation: some protocols look first and write then. But
        what was written is listed: so each writes a file of its own, then looks, and gives up when
        it sees another's. At most one does not."""
        self._ask("makedirs", self.root, exist_ok=True)
        mine = f"{name}.{uuid4().hex}"
        self.write(mine, b"")
        if any(other.partition(".")[0] == name and other != mine for other in self.names()):
            raise FileExistsError(f"{self.where}/{name}")

    def write(self, file: str, data: bytes) -> None:
        self._ask("pipe_file", f"{self.root}/{file}", data)

    @contextmanager
    def stream(self, file: str) -> Iterator[BinaryIO]:
        where = f"{self.root}/{file}"
        with as_os_errors(f"write {where}"), self._ask("open", where, "wb") as target:
            yield target

    def drafts(self) -> list[str]:
        return [name for name in self.names() if not self.complete(name)]

    def complete(self, name: str) -> bool:
        return bool(self._ask("exists", f"{self.root}/{name}/{MANIFEST}"))

    def draft(self, name: str) -> Remote:
        folder = self.drafted(name)
        self._ask("makedirs", folder.root, exist_ok=True)
        return folder

    def drafted(self, name: str) -> Remote:
        return self.child(name)

    def commit(self, name: str, manifest: bytes, fence: Callable[[], None]) -> None:
        fence()
        self.child(name).write(MANIFEST, manifest)

    def discard(self, name: str) -> None:
        with suppress(OSError):
            self._ask("rm", f"{self.root}/{name}", recursive=True)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._ask("rm_file", f"{self.root}/{name}/{MANIFEST}")
        self.discard(name)

    def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        """A call of fsspec's."""
        with as_os_errors(f"{method} {args[0]}"):
            return getattr(self.fs, method)(*args, **options)


def storage_at(key: str, where: str | Path) -> Storage:
    """A folder's or an URL's. `file://` is the folder that it names."""
    text = str(where)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    elif "://" in text or "::" in text:
        return Remote.at(key, text)
    return Local(Path(text).expanduser().absolute())


def _trial() -> str:
    return f".trial-{os.getpid()}"
