"""What `branchgrpo doctor` looks at of Ray and its machines: each check takes what was found,
judges it, and says what to do. For memory, disks and files see cluster.doctor.storage."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import ray

from cluster.address import lets_all_in, reachable, token_hint, token_path
from cluster.doctor.finding import Finding, State, node_count
from cluster.doctor.machines import DRIVER, Answers, Machines, failures
from cluster.session import Session

CLIENT_PORT = 10001
SKEW_SECONDS = 2.0
GRACE = "RAY_JOB_STOP_WAIT_TIME_S"
GRACE_SECONDS = 60
IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it in the environment of a submitted job."""


def nodes(address: str, machines: Machines) -> Finding:
    """Which Ray this is. Versions that differ from ours were refused when connecting."""
    total = ray.cluster_resources()
    dead = sum(not node["Alive"] for node in ray.nodes())
    gone = f", {dead} more have gone" if dead else ""
    size = f"{total.get('CPU', 0):g} CPU, {total.get('GPU', 0):g} GPU"
    return Finding(
        "ok", f"Ray {ray.__version__} at {address}: {node_count(len(machines.nodes))}{gone}, {size}"
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
        "ok", f"{text}, on {node_count(len(facts) - 1)} and here" if len(facts) > 1 else text
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
    where = f"on {node_count(len(counted))}" if counted else "here"
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
        f"{have} on {sum(map(bool, counted.values()))} of {node_count(len(counted))}, torch sees "
        f"all; the config wants {need:g}"
    )
    return Finding("ok", told)


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
