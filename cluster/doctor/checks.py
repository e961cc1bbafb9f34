"""What `branchgrpo doctor` looks at: each check takes what was found, judges it, and says what to
do."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import ray

from cluster import ray_private
from cluster.doctor.machines import DRIVER, Answers, Machines, failures, leave, missing, remove
from cluster.reach import lets_all_in, reachable, token_hint, token_path
from cluster.session import Session

State = Literal["ok", "warn", "fail"]
CLIENT_PORT = 10001
SKEW_SECONDS = 2.0
STATE_BYTES = 12
"""Bytes of a checkpoint for each trained number: itself and two moments of AdamW, float32."""
GRACE = "RAY_JOB_STOP_WAIT_TIME_S"
GRACE_SECONDS = 60
IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it in the environment of a submitted job."""


@dataclass(frozen=True)
class Finding:
    """What a check saw."""

    state: State
    text: str  # one line
    advice: str = ""  # what to do


def nodes(address: str, machines: Machines) -> Finding:
    """Which Ray this is. Versions that differ from ours were refused when connecting."""
    total = ray.cluster_resources()
    dead = sum(not node["Alive"] for node in ray.nodes())
    gone = f", {dead} more have gone" if dead else ""
    size = f"{total.get('CPU', 0):g} CPU, {total.get('GPU', 0):g} GPU"
    return Finding(
        "ok", f"Ray {ray.__version__} at {address}: {_nodes(len(machines.nodes))}{gone}, {size}"
    )


def ports(session: Session) -> Finding:
    """Can the dashboard (for `ray job submit`), the GCS (for drivers) and the client server (for
    ray://) be reached from here?"""
    host, dashboard = session.address.rpartition(":")[0], session.dashboard.removeprefix("http://")
    served = {"GCS": session.address, "dashboard": dashboard, "client": f"{host}:{CLIENT_PORT}"}
    closed = [name for name, address in served.items() if not address or not reachable(address)]
    text = "; ".join(
        f"{name} {address or 'not served'}{' closed' if address and name in closed else ''}"
        for name, address in served.items()
    )
    if "GCS" in closed:
        return Finding("fail", text, "open the port of the GCS between this machine and the head")
    if "dashboard" in closed:
        return Finding(
            "warn",
            text,
            "ray job submit, metrics and the dashboard need it: start the head with "
            "--include-dashboard true",
        )
    return Finding("ok", text + (" (only ray:// addresses need it)" if closed else ""))


def authentication(address: str) -> Finding:
    """Does the Ray at this address let in whoever reaches it? Empty: none runs."""
    if not address:
        unset = "(not set: the default of the Ray that is started here)"
        return Finding("ok", f"RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE') or unset}")
    if not lets_all_in(address):
        return Finding(
            "ok",
            f"Ray asks for a token, and so does its dashboard{token_hint()}".replace(
                ", which asks for a token", ""
            ),
        )
    advice = (
        "start Ray with RAY_AUTH_MODE=token on all nodes and set it here; ray "
        "get-auth-token --generate makes a token"
    )
    return Finding(
        "warn",
        "Ray asks for no token: whoever reaches its ports can run code on every node",
        advice,
    )


def token_mode() -> tuple[str, int] | None:
    """The token file that Ray reads on the machine it runs on, and its mode; None where there is
    none or the token is a variable."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    path = token_path()
    return (str(path), path.stat().st_mode & 0o777) if path.exists() else None


def token_file(answers: Answers) -> Finding:
    """May only its owner read it? Ray writes it readable for all. answers: of `token_mode`."""
    if broken := failures(answers):
        return Finding("fail", broken)
    found = {name: answer for name, answer in answers.items() if answer}
    open_to = {name: (path, mode) for name, (path, mode) in found.items() if mode & 0o077}
    if open_to:
        text = ", ".join(
            f"{name}: {path} has mode {mode:o}" for name, (path, mode) in open_to.items()
        )
        state: State = "fail" if any(mode & 0o007 for _, mode in open_to.values()) else "warn"
        return Finding(
            state,
            f"others may read the token: {text}",
            f"chmod 600 {' '.join(sorted({path for path, _ in open_to.values()}))}",
        )
    return Finding(
        "ok",
        ", ".join(f"{name}: {path} is its owner's alone" for name, (path, _) in found.items())
        or "none: no token, or RAY_AUTH_TOKEN holds it",
    )


def versions(facts: Answers) -> Finding:
    """The same Python, packages and code on every node as here."""
    if broken := failures(facts):
        return Finding(
            "fail",
            broken,
            "the node's Python cannot say what it has: install the same environment on all nodes",
        )
    ours, wrong = _named(facts[DRIVER]), []
    for name, answer in facts.items():
        wrong += [
            f"{name} has {what} {got}, {ours[what]} is here"
            for what, got in _named(answer).items()
            if got != ours[what]
        ]
    text = ", ".join(f"{what} {version}" for what, version in ours.items())
    if wrong:
        return Finding(
            "fail",
            "; ".join(wrong),
            "install the same environment on all nodes; code travels with ray job submit "
            "--working-dir .",
        )
    return Finding(
        "ok", f"{text}, on {_nodes(len(facts) - 1)} and here" if len(facts) > 1 else text
    )


def _named(machine: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Python": machine["python"],
        **machine["packages"],
        **{f"{name}'s code": digest for name, digest in machine["code"].items()},
    }


def gpus(
    counted: Mapping[str, int], facts: Answers, wanted: Mapping[str, tuple[int, float]]
) -> Finding:
    """Are there as many as the config wants, and does torch see those that Ray counts? counted: by
    node. wanted: by role, actors and GPUs of each."""
    seen = {
        name: None if answer["cuda"] is None else len(answer["cuda"])
        for name, answer in facts.items()
        if not isinstance(answer, Exception)
    }
    have = sum(counted.values()) if counted else seen.get(DRIVER) or 0
    need = sum(count * each for count, each in wanted.values())
    where = f"on {_nodes(len(counted))}" if counted else "here"
    if have < need:
        roles = ", ".join(f"{count} {role} × {each:g}" for role, (count, each) in wanted.items())
        advice = (
            "ask the cluster that it is for (--address HOST:PORT), start nodes with more, "
            "or set ROLE.gpus and the number of actors"
        )
        return Finding(
            "fail",
            f"the config wants {need:g} ({roles}), {have or 'none'} "
            f"{'are' if have != 1 else 'is'} {where}",
            advice,
        )
    if not counted:
        return Finding(
            "ok",
            f"torch sees {seen.get(DRIVER) or 'no'} GPUs here, the config wants "
            f"{f'{need:g}' if need else 'none'}",
        )
    lacking = [
        f"{name}: Ray counts {count}, torch sees {seen[name] or 0}"
        for name, count in counted.items()
        if name in seen and count > (seen[name] or 0)
    ]
    if lacking:
        return Finding(
            "fail",
            "; ".join(lacking),
            "install a torch with CUDA and the driver it needs, and start Ray with the "
            "GPUs that are there",
        )
    unused = [
        f"{name}: Ray counts {count}, torch sees {seen[name]}"
        for name, count in counted.items()
        if (seen.get(name) or 0) > count
    ]
    if unused:
        return Finding("warn", "; ".join(unused), "start Ray on that node with --num-gpus")
    told = (
        f"{have} on {sum(map(bool, counted.values()))} of {_nodes(len(counted))}, torch sees "
        f"all; the config wants {need:g}"
    )
    return Finding("ok", told)


def object_store(stores: Mapping[str, int], wanted: int, published: int) -> Finding:
    """Room for two versions of the weights, and for what the config would start here. Sizes in
    bytes; stores: by node."""
    smallest, size = min(stores.items(), key=lambda entry: entry[1])
    text = f"{_size(size)} on {smallest}, the smallest"
    text += f"; published weights {_size(published)}" if published else ""
    if size < 2 * published:
        return Finding(
            "fail",
            f"{text}: expected room for two versions of them",
            f"ray start --object-store-memory {2 * published}",
        )
    if size < wanted:
        return Finding(
            "warn",
            f"{text}: expected cluster.object_store_mb, {_size(wanted)}",
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
        f"{name}: {_size(shm[0])} for an object store of {_size(need)}"
        for name, shm in have.items()
        if shm[0] < (need := stores.get(name, wanted))
    ]
    if small:
        return Finding(
            "warn", "; ".join(small), "in a container: --shm-size, or a memory emptyDir at /dev/shm"
        )
    return Finding(
        "ok",
        ", ".join(f"{name}: {_size(shm[1])} of {_size(shm[0])} free" for name, shm in have.items()),
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


def clocks(found: Mapping[str, tuple[float, float]]) -> Finding:
    """Do the nodes' clocks agree with ours? found: by node, seconds ahead and how exact that is."""
    text = ", ".join(
        f"{name} {ahead:+.2f} ± {exact:.2f} s" for name, (ahead, exact) in found.items()
    )
    wrong = any(abs(ahead) - exact > SKEW_SECONDS for ahead, exact in found.values())
    return (
        Finding(
            "warn", text, "run an NTP client on all nodes: ages and times in logs don't compare"
        )
        if wrong
        else Finding("ok", text)
    )


def job_stop(environment: Mapping[str, str]) -> Finding:
    """Has a submitted job the time to save a checkpoint when it is stopped? Ray gives 3 s unless
    told otherwise."""
    if IN_JOB not in environment:
        return Finding("ok", f"not in a submitted job; submit with {GRACE} in its env_vars")
    seconds = environment.get(GRACE, "")
    if seconds.isdigit() and int(seconds) >= GRACE_SECONDS:
        return Finding("ok", f"{GRACE}={seconds}")
    advice = (
        f'ray job submit --runtime-env-json \'{{"env_vars": {{"{GRACE}": "{GRACE_SECONDS}"}}}}\''
    )
    return Finding(
        "warn",
        f"{GRACE}={seconds or '(unset: 3 s)'}: ray job stop may kill the run before its "
        "checkpoint is written",
        advice,
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
            f"{folder}: more than {_size(limit)}, Ray's limit for ray job submit "
            f"--working-dir; {_size(size)} or more of it in {largest}"
        )
        return Finding(
            "warn",
            text,
            "name what the run does not need in .gitignore or .rayignore, and keep data on "
            "shared storage",
        )
    return Finding(
        "ok",
        f"{folder}: {_size(sizes.total())} to upload with ray job submit, of {_size(limit)} "
        "at most",
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
        f"{_size(free)} free at {path}; a checkpoint needs "
        f"{f'about {_size(need)}' if trained else 'three times the trained weights'}"
    )
    return (
        Finding("fail", text, "free space, or another checkpoint.folder")
        if free < need
        else Finding("ok", text)
    )


def storage(machines: Machines, folder: str) -> Finding:
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


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count != 1 else ''}"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
