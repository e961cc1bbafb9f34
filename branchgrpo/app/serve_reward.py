"""The command serve-reward."""

from __future__ import annotations

from typing import Any

from branchgrpo.app.overrides import REWARD_KEYS
from branchgrpo.config import load as configs
from branchgrpo.errors import UserError


def serve_reward(found: Any, overrides: dict[str, str]) -> int:
    """The server behind `branchgrpo serve-reward`; runs until it is told to end."""
    from branchgrpo.rewards.http.server import serve

    strange = [key for key in overrides if not key.startswith(REWARD_KEYS)]
    if strange:
        raise UserError(f"--{strange[0]}: expected --{REWARD_KEYS}KEY, a key of the reward")
    serve(
        configs.reward(
            found.name,
            {key.removeprefix(REWARD_KEYS): text for key, text in overrides.items()},
            REWARD_KEYS,
        ),
        host=found.host,
        port=found.port,
        token_env=found.token_env,
        max_mb=found.max_mb,
        threads=found.threads,
        device=found.device,
        ready=lambda url: print(f"serving {found.name} at {url}", flush=True),
    )
    return 0
