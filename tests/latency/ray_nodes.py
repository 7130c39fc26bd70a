"""Nodes of a Ray cluster on this machine, and a stand whose times are known.

Each node is `ray start --block` in a session of its own, with its name in the environment of its workers. Nodes end by
the numbers of their processes: `ray stop` would end everybody's.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from latency.measurement import Measurement
from latency.runtimes import Device
from latency.timer import Timing

FAKE = Device("cpu", "fake", 1)
ROOT = Path(__file__).parents[2]
SLOWER = {"a": 1.0, "b": 1.25}
"""Every time on a node is so many times as long as it is on node a."""


def truth(point):
    return 1.0 + 0.1 * point


class NodeStand:
    """Known times, slower on node b. The two wait for each other before they start, so that both have a part."""

    def __init__(self):
        self.name, self.folder = os.environ["NODE_NAME"], Path(os.environ["NODE_FOLDER"])
        self.visits = 0
        here = type(self).__name__
        (self.folder / f"{here}-{self.name}").touch()
        while len(list(self.folder.glob(f"{here}-?"))) < 2:
            time.sleep(0.02)

    def reference(self):
        return SLOWER[self.name]

    def state(self):
        return {"clock_mhz": None, "memory_mhz": None, "slowed_by": [], "others": 0, "load": None}

    def time(self, point):
        self.visits += 1
        time.sleep(0.005)
        with (self.folder / f"{type(self).__name__}-{self.name}.timed").open("a") as timed:
            timed.write(f"{point}\n")
        return Timing(Measurement.of([truth(point) * SLOWER[self.name]]), 0.0)


class DoomedStand(NodeStand):
    """Node b does not return from its twentieth visit, more than its first shard holds: time to kill it."""

    def time(self, point):
        if self.name == "b" and self.visits == 19:
            (self.folder / "b-is-stuck").touch()
            time.sleep(3600)
        return super().time(point)


def node_stand(plan):
    return FAKE, NodeStand()


def doomed_stand(plan):
    return FAKE, DoomedStand()


@dataclass(frozen=True)
class Node:
    process: subprocess.Popen
    address: str

    def kill(self):
        """The whole node at once, as when the power goes."""
        for pid in [self.process.pid, *_below(self.process.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def _below(pid):
    """Numbers of all processes that descend from one."""
    children = [
        int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
    ]
    return [found for child in children for found in (child, *_below(child))]


def environment(token, **more):
    """Of a node or a driver; without a token, authentication is off."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    return {
        **kept,
        **auth,
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "500",
        **more,
    }


def start_node(name, resources, folder, token, head=None):
    """A node that offers `resources` (JSON); `head` is the first one, None where this is it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = (
        ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        if head is None
        else [f"--address={head.address}"]
    )
    options = ["--block", "--num-cpus=1", "--num-gpus=0", "--node-ip-address=127.0.0.1", f"--resources={resources}"]
    limits = ["--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0"]
    log = (Path(folder) / f"{name}.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *place, *options, *limits, "--disable-usage-stats"],
        env=environment(token, NODE_NAME=name, NODE_FOLDER=str(folder)),
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    log.close()
    return Node(process, f"127.0.0.1:{port}" if head is None else head.address)
