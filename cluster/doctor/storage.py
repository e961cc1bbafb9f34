"""What the doctor looks at of memory, disks and files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from cluster import ray_private
from cluster.doctor.finding import Finding, size_text
from cluster.doctor.machines import DRIVER, Answers, Machines, failures, leave, missing, remove

STATE_BYTES = 12
"""Bytes of a checkpoint for each trained number: itself and two moments of AdamW, float32."""


def object_store(stores: Mapping[str, int], wanted: int, published: int) -> Finding:
    """Room for two versions of the weights, and for what the config would start here. Sizes in
    bytes; stores: by node."""
    smallest, size = min(stores.items(), key=lambda entry: entry[1])
    text = f"{size_text(size)} on {smallest}, the smallest"
    text += f"; published weights {size_text(published)}" if published else ""
    if size < 2 * published:
        return Finding(
            "fail",
            f"{text}: expected room for two versions of them",
            f"ray start --object-store-memory {2 * published}",
        )
    if size < wanted:
        return Finding(
            "warn",
            f"{text}: expected cluster.object_store_mb, {size_text(wanted)}",
            f"ray start --object-store-memory {wanted}",
        )
    return Finding("ok", text)


def shared_memory(facts: Answers, stores: Mapping[str, int], wanted: int) -> Finding:
    """/dev/shm holds the object store. In bytes; wanted: of a Ray that is started here."""
    have = {
        name: answer["shm"] for name, answer in facts.items() if not isinstance(answer, Exception)
    }
    if none := [name for name, shm in have.items() if shm is None]:
        return Finding(
            "warn",
            f"no /dev/shm on {', '.join(none)}: the object store goes to the disk",
            "mount a tmpfs there",
        )
    small = [
        f"{name}: {size_text(shm[0])} for an object store of {size_text(need)}"
        for name, shm in have.items()
        if shm[0] < (need := stores.get(name, wanted))
    ]
    if small:
        return Finding(
            "warn", "; ".join(small), "in a container: --shm-size, or a memory emptyDir at /dev/shm"
        )
    return Finding(
        "ok",
        ", ".join(
            f"{name}: {size_text(shm[1])} of {size_text(shm[0])} free" for name, shm in have.items()
        ),
    )


def files(facts: Answers) -> Finding:
    """What the model and the rewards are loaded from, on every node."""
    lacking = [
        f"{name}: {file}"
        for name, answer in facts.items()
        if not isinstance(answer, Exception)
        for file, there in answer["files"].items()
        if not there
    ]
    if lacking:
        return Finding(
            "fail",
            f"expected these files, found none: {'; '.join(lacking)}",
            "put models and rewards on storage that all nodes mount at the same place, or "
            "copy them",
        )
    return Finding(
        "ok", "on all machines" if facts[DRIVER]["files"] else "all are shipped with the package"
    )


def working_dir(folder: Path, limit: int) -> Finding:
    """Does what `ray job submit --working-dir` would upload of the folder fit Ray's limit, in
    bytes? Ray packs without compressing."""
    sizes = Counter[str]()

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).parts[0]] += path.stat().st_size
        if sizes.total() > limit:
            raise _Enough

    try:
        ray_private.walk_upload(folder, add)
    except _Enough:
        ((largest, size),) = sizes.most_common(1)
        text = (
            f"{folder}: more than {size_text(limit)}, Ray's limit for ray job submit "
            f"--working-dir; {size_text(size)} or more of it in {largest}"
        )
        return Finding(
            "warn",
            text,
            "name what the run does not need in .gitignore or .rayignore, and keep data on "
            "shared storage",
        )
    return Finding(
        "ok",
        f"{folder}: {size_text(sizes.total())} to upload with ray job submit, of "
        f"{size_text(limit)} at most",
    )


class _Enough(Exception):
    """Counted beyond the limit."""


def disk(folder: str, trained: int) -> Finding:
    """Room for checkpoints. trained: numbers, 0 = not known."""
    if not folder or "://" in folder:
        return Finding("ok", f"{folder or 'no folder for checkpoints'}: free space is not known")
    path = Path(folder)
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    free, need = status.f_bavail * status.f_frsize, trained * STATE_BYTES
    text = (
        f"{size_text(free)} free at {path}; a checkpoint needs "
        f"{f'about {size_text(need)}' if trained else 'three times the trained weights'}"
    )
    return (
        Finding("fail", text, "free space, or another checkpoint.folder")
        if free < need
        else Finding("ok", text)
    )


def shared_folder(machines: Machines, folder: str) -> Finding:
    """Every machine writes a file there, and every machine must see all of them."""
    written = machines.call(leave, folder, uuid4().hex[:8])
    left = [answer for answer in written.values() if not isinstance(answer, Exception)]
    try:
        if broken := failures(written):
            return Finding(
                "fail",
                f"{folder} cannot be written: {broken}",
                "expected a folder that the user of every node's Ray may write",
            )
        seen = machines.call(missing, folder, left)
    finally:
        machines.call(remove, folder, left)
    if broken := failures(seen):
        return Finding(
            "fail",
            f"{folder} cannot be read: {broken}",
            "expected a folder that the user of every node's Ray may read",
        )
    blind = [name for name, absent in seen.items() if absent]
    if blind:
        return Finding(
            "fail",
            f"{folder} is not the same folder everywhere: {', '.join(blind)} see files that "
            "others wrote there not",
            "mount the same storage at the same place on all nodes, or name a URL",
        )
    return Finding(
        "ok",
        f"{folder}: written and seen by {len(written)} machines"
        if len(written) > 1
        else f"{folder}: writable",
    )
