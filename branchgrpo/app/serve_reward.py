"""The command serve-reward."""

from __future__ import annotations

import argparse
from typing import Any

from branchgrpo.app.overrides import REWARD_KEYS
from branchgrpo.config import load as configs
from branchgrpo.config.references import FORMS
from branchgrpo.config.registry import REWARDS
from branchgrpo.errors import UserError


def add(command: argparse.ArgumentParser) -> None:
    """Its options."""
    known = f"{', '.join(REWARDS.shipped)}; or {FORMS}"
    command.add_argument("name", metavar="NAME", help=f"a reward: {known}")
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; others than this machine's own need a token (default: "
        "127.0.0.1)",
    )
    command.add_argument("--port", type=int, default=8600, help="0 = any free one (default: 8600)")
    command.add_argument(
        "--token-env",
        default="",
        metavar="VARIABLE",
        help="environment variable with the token that clients must send (default: none)",
    )
    command.add_argument("--max-mb", type=int, default=256, help="largest request (default: 256)")
    command.add_argument("--threads", type=int, default=1, help="compute threads (default: 1)")
    command.add_argument("--device", default="cpu", help="torch device (default: cpu)")


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
