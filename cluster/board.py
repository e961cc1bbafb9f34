"""Where runs say how they are and people say what they want: keys in the cluster's head, which no
process of a run holds.

Reading and writing them takes a connection to the head and its token, and no driver: nothing of it
appears among Ray's jobs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import ray

from cluster import ray_private
from cluster.errors import PlacementError, one_line

SPACE = b"branchgrpo"
ANSWER_SECONDS = 10.0
TURN = b"turn"
STOP = "stop"
"""Stands among the roles for a request that the run ends."""


class Board:
    """The notices of all runs of one cluster. Raises PlacementError, in one line, when its head
    gives no answer."""

    def __init__(self, client: Any, address: str, seconds: float = ANSWER_SECONDS):
        """client: see ray_private.gcs_client. seconds: how long to wait for an answer."""
        self.client = client
        self.address = address
        self.seconds = seconds

    @classmethod
    def at(cls, address: str, seconds: float = ANSWER_SECONDS) -> Board:
        """Of the Ray at HOST:PORT, which must have been greeted: Ray ends a process that finds
        none."""
        return cls(ray_private.gcs_client(address), address, seconds)

    def runs(self) -> list[str]:
        """Names of runs whose driver lives."""
        return sorted(
            name for name, notice in self._notices().items() if notice["job"] in self._jobs()
        )

    def claim(self, run: str, notice: Mapping[str, Any]) -> None:
        """A new run's first notice, with the job that it ends with. What others left whose jobs are
        gone is taken away.

        Raises PlacementError when a run of this name lives.
        """
        living = self._jobs()
        for name, old in self._notices().items():
            if old["job"] not in living:
                self.forget(name)
        if not self._ask("internal_kv_put", _notice(run), _bytes(notice), False, SPACE):
            raise PlacementError(
                f"run.name: expected one that no run of this cluster has, got {run}"
            )
        self._ask("internal_kv_del", _request(run, ""), True, SPACE)

    def post(self, run: str, notice: Mapping[str, Any]) -> None:
        """How the run is."""
        self._ask("internal_kv_put", _notice(run), _bytes(notice), True, SPACE)

    def read(self, run: str) -> dict[str, Any]:
        """What the run posted last. Raises PlacementError when it has ended."""
        found = self._notices([run]).get(run)
        if found is None or found["job"] not in self._jobs():
            raise PlacementError(f"--run: expected a run that goes on, {run} has ended")
        return found

    def request(self, run: str, counts: Mapping[str, int]) -> None:
        """What somebody wants, by role, or of STOP. Twice is as good as once."""
        for role, count in counts.items():
            self._ask("internal_kv_put", _request(run, role), _bytes(count), True, SPACE)

    def requests(self, run: str, roles: Iterable[str]) -> dict[str, int]:
        """What was requested, by role; roles that nobody spoke of are missing."""
        keys = {_request(run, role): role for role in roles}
        found = self._ask("internal_kv_multi_get", list(keys), SPACE)
        return {keys[key]: int(json.loads(value)) for key, value in found.items()}

    def forget(self, run: str) -> None:
        """The run has ended."""
        self._ask("internal_kv_del", _notice(run), False, SPACE)
        self._ask("internal_kv_del", _request(run, ""), True, SPACE)

    def take_turn(self, mine: Mapping[str, str]) -> str:
        """One run at a time may take its room; the name of another one that does, or nothing when
        it is `mine` (run and job)."""
        while not self._ask("internal_kv_put", TURN, _bytes(mine), False, SPACE):
            found = self._ask("internal_kv_multi_get", [TURN], SPACE)
            other = json.loads(found[TURN]) if found else None
            if other and other["job"] in self._jobs():
                return str(other["run"])
            if other:
                self.end_turn()  # its driver died meanwhile
        return ""

    def end_turn(self) -> None:
        """The next one may."""
        self._ask("internal_kv_del", TURN, False, SPACE)

    def _notices(self, runs: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        keys = (
            self._ask("internal_kv_keys", b"run:", SPACE)
            if runs is None
            else [_notice(run) for run in runs]
        )
        found = self._ask("internal_kv_multi_get", keys, SPACE) if keys else {}
        return {
            key.decode().removeprefix("run:"): json.loads(value) for key, value in found.items()
        }

    def _jobs(self) -> set[str]:
        """Those that live."""
        found = self._ask(
            "get_all_job_info",
            skip_submission_job_info_field=True,
            skip_is_running_tasks_field=True,
        )
        return {job.hex() for job, info in found.items() if not info.is_dead}

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self.client, method)(*arguments, timeout=self.seconds, **options)
        except (ray.exceptions.RpcError, ray.exceptions.GetTimeoutError, TimeoutError) as error:
            raise PlacementError(
                f"the Ray at {self.address} gave no answer in {self.seconds:g} s: {one_line(error)}"
            ) from error


def _notice(run: str) -> bytes:
    return f"run:{run}".encode()


def _request(run: str, role: str) -> bytes:
    return f"request:{run}:{role}".encode()


def _bytes(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
