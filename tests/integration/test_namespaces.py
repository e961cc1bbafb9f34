"""Two processes meet over gloo in a network namespace of their own: without a default route, over
IPv4 and over IPv6."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RANK = r"""
import os, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from actors.meeting import free_address, use_interface
host, rank, told = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if rank == 0:
    with open(told + ".partial", "w") as file:
        file.write(free_address(host))
    os.rename(told + ".partial", told)
while not os.path.exists(told):
    time.sleep(0.05)
address = open(told).read()
use_interface(address)
dist.init_process_group(
    "gloo", init_method=address, world_size=2, rank=rank, timeout=timedelta(seconds=300)
)
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
sys.stdout.write(f"{address} {os.environ['GLOO_SOCKET_IFNAME']} {total.item()}\n")
dist.destroy_process_group()
"""

# A second address on an interface that is up; no route leads out.
LINK = (
    "ip link set lo up; ip link add inside type veth peer name other; ip link set inside up; "
    "ip link set other up"
)
SETUP = {
    "192.0.2.77": f"{LINK}; ip addr add 192.0.2.77/24 dev inside",
    "fd00::77": f"{LINK}; ip addr add fd00::77/64 dev inside nodad",
}


def isolated(setup: str, *command: str) -> list[str]:
    return [
        "unshare",
        "--user",
        "--map-root-user",
        "--net",
        "sh",
        "-ec",
        f'{setup}; exec "$@"',
        "sh",
        *command,
    ]


def missing() -> str:
    if not shutil.which("ip") or not shutil.which("unshare"):
        return "needs ip (iproute2) and unshare (util-linux)"
    tried = subprocess.run(isolated(SETUP["fd00::77"], "true"), capture_output=True, text=True)
    return (
        f"network namespaces cannot be made here: {tried.stderr.strip()}"
        if tried.returncode
        else ""
    )


@pytest.mark.parametrize("host", SETUP)
def test_two_ranks_meet_where_no_route_leads_out(host: str, tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    both = (
        f'{sys.executable} -c "$RANK" {host} 0 {tmp_path}/address & {sys.executable} -c '
        f'"$RANK" {host} 1 {tmp_path}/address; wait $!'
    )
    kept = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
    done = subprocess.run(
        isolated(SETUP[host], "sh", "-ec", both),
        env=kept | {"RANK": RANK, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("tcp://")]
    assert [line[1:] for line in lines] == [["inside", "3.0"]] * 2, done.stdout + done.stderr
    assert all(
        line[0].startswith("tcp://[fd00::77]:" if ":" in host else "tcp://192.0.2.77:")
        for line in lines
    )
