"""The command doctor."""

from __future__ import annotations

import json
from dataclasses import replace

from branchgrpo.app import checks, roles
from branchgrpo.config import secrets
from branchgrpo.config.schema import Config


def doctor(config: Config, address: str, as_json: bool) -> int:
    """Look at the cluster, or at this machine. Returns the exit code."""
    from rich.console import Console

    from cluster.doctor.diagnosis import Needs, diagnose, exit_code, listing, render

    needs = Needs(
        machine=checks.machine,
        own=checks.own(config),
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
    print(json.dumps(listing(found), indent=1)) if as_json else Console().print(render(found))
    return exit_code(found)
