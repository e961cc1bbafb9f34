"""The command doctor."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from branchgrpo.app import checks, fits, roles
from branchgrpo.config import secrets
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError
from branchgrpo.estimate.cards import Card, card
from branchgrpo.estimate.estimate import Estimate, estimate
from branchgrpo.estimate.report import render as render_estimate


class Fitting:
    """The check that the config fits its GPUs; keeps what it has estimated."""

    def __init__(self, config: Config, wanted: Card | None):
        self.config = config
        self.wanted = wanted
        self.found: Estimate | None = None
        self.there = 0  # GPUs, of the cluster or else here

    def __call__(self) -> str:
        """A line. Raises UserError for what cannot fit. Asked while connected to Ray, if one
        runs."""
        import ray

        from cluster import nodes

        names = fits.here()
        self.there = len(names)
        if ray.is_initialized():
            names = [*nodes.accelerators(), *names]
            self.there = int(ray.cluster_resources().get("GPU", 0))
        self.found = estimate(self.config, self.wanted or fits.smallest(names))
        if self.found.problems:
            raise UserError("; ".join(self.found.problems))
        return fits.line(self.found)


def doctor(config: Config, address: str, as_json: bool, card_name: str = "") -> int:
    """Look at the cluster, or at this machine, and at what the config needs. Returns the exit code.

    card_name: of the GPUs that it is for; empty: those that are there.
    """
    from rich.console import Console

    from cluster.doctor.diagnosis import Needs, diagnose, exit_code, listing, render

    fitting = Fitting(config, card(card_name) if card_name else None)
    needs = Needs(
        machine=checks.machine,
        own={**checks.own(config), "fits": fitting},
        files=checks.files(config),
        folders=checks.folders(config),
        checkpoints=config.checkpoint.folder or config.run.folder,
        gpus=roles.gpus(config),
        object_store_mb=config.cluster.object_store_mb,
        published_bytes=checks.published(config),
        trained=checks.trained(config),
    )
    found = diagnose(config.cluster.address if address == "auto" else address, needs)
    found = {
        name: replace(
            one, text=secrets.masked_text(one.text), advice=secrets.masked_text(one.advice)
        )
        for name, one in found.items()
    }
    if as_json:
        every: list[dict[str, Any]] = [dict(one) for one in listing(found)]
        if fitting.found:
            every[list(found).index("fits")]["estimate"] = fitting.found.listing()
        print(json.dumps(every, indent=1))
        return exit_code(found)
    console = Console()
    console.print(render(found))
    if fitting.found:
        console.print()
        console.print(render_estimate(fitting.found, fitting.there))
    return exit_code(found)
