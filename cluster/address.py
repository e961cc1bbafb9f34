"""Is there a Ray at an address, and does it take our token? Asked first: Ray's own client tries for
minutes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from cluster import ray_private
from cluster.errors import PlacementError

SECONDS = 3.0
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""What `ray health-check` calls; an empty request is a valid one."""


def reachable(address: str, seconds: float = SECONDS) -> bool:
    """Does anything accept connections at HOST:PORT? Raises PlacementError for an address of
    another form."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise PlacementError(f"Ray address: expected HOST:PORT, got {address!r}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), seconds):
            return True
    except OSError:
        return False


def authenticate(address: str) -> None:
    """Make sure that a Ray answers at HOST:PORT and lets us in. Where it asks for a token and
    RAY_AUTH_MODE is not set, sets it.

    Raises PlacementError, in one line, within seconds.
    """
    if not reachable(address):
        raise PlacementError(
            f"no Ray found: expected one at {address} (--address, or RAY_ADDRESS), nothing "
            "answers there"
        )
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return  # what follows asks without TLS
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    code = _ask(address, token() if mode == "token" else "")
    if code == "UNAUTHENTICATED" and not mode and token():
        code = _ask(address, token())
        os.environ["RAY_AUTH_MODE"] = "token"
        ray_private.read_environment()
    if code == "UNAUTHENTICATED":
        got = (
            f"RAY_AUTH_MODE={mode or '(not set)'} and {'another token' if token() else 'no token'}"
        )
        expected = (
            "RAY_AUTH_MODE=token and its token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
            "~/.ray/auth_token"
        )
        raise PlacementError(
            f"the Ray at {address} asks for a token: expected {expected}, got {got}"
        )
    if code:
        raise PlacementError(
            f"no Ray found: expected one at {address} (--address, or RAY_ADDRESS), "
            f"something else answers there: {code}"
        )


def lets_all_in(address: str) -> bool:
    """Does the Ray at HOST:PORT answer without a token?"""
    return _ask(address, "") == ""


def token_path() -> Path:
    """Where Ray looks for its token when no variable holds it."""
    return Path(
        os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    ).expanduser()


def token() -> str:
    """The token that Ray's client would send, or nothing."""
    path = token_path()
    return os.environ.get("RAY_AUTH_TOKEN") or (
        path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    )


def token_hint() -> str:
    """How a person gets the token that the dashboard asks for; empty where Ray asks for none."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return ""
    return ", which asks for a token: " + (
        "that in RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else f"cat {token_path()}"
    )


def require_home() -> None:
    """A Ray that is started here makes a token where there is none, and writes it to ~/.ray. Raises
    PlacementError where it cannot."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or token():
        return
    home = Path.home() / ".ray"
    there = next(one for one in (home, *home.parents) if os.path.lexists(one))
    trial = there / f".trial-{os.getpid()}"
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise PlacementError(
            f"home: expected a folder that can be written, for Ray's token in {home}, got "
            f"{there}: {error.strerror}; "
            "or set HOME, RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with a token"
        ) from error


def _ask(address: str, bearer: str) -> str:
    """The name of the error, empty when all is well."""
    import grpc

    metadata = [("authorization", f"Bearer {bearer}")] if bearer else None
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(ALIVE)(b"", timeout=SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return ""
