"""Where learner ranks meet: on any address that the nodes have, of either family, with or without a
way out."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]


def free_address(host: str) -> str:
    """tcp://HOST:PORT, free now. host: an IPv4 or IPv6 address of this machine."""
    with socket.socket(_family(host)) as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def use_interface(address: str) -> None:
    """Let gloo listen where the others can reach it, unless the environment says where: on the
    interface that leads to rank 0. By itself it takes what this host's own name resolves to, which
    may be loopback, or nothing.

    address: where rank 0 is met, as tcp://HOST:PORT.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    met = urlsplit(address)
    family = _family(str(met.hostname))
    # sends nothing: asks from which of our addresses it would
    with socket.socket(family, socket.SOCK_DGRAM) as route:
        route.connect((met.hostname, met.port))
        ours = route.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.family == family and one.address.partition("%")[0] == ours for one in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
