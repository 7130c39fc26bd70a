"""Profiling on a Ray cluster: two nodes on this machine, one of them killed; the journal is the driver's."""

import json
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from latency.errors import TargetError
from latency.fanout import SHARD, profile_on_cluster
from latency.grid import Grid
from latency.plan import ProfilePlan, corrected
from latency.profiler import open_journal, table_from_journal
from latency.runtimes import find_device
from latency.storage import load_table
from latency.target import Target
from tests.cases import CLASS_TOKEN
from tests.latency.ray_nodes import FAKE, ROOT, environment, start_node, truth

pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a node in /proc"),
    pytest.mark.slow,
]

PATIENCE = 180
TINY = Grid((8, 16), (1, 2), (4, 8), (4,), (8, 16))
PLAN = ProfilePlan(Target(FAKE.slug, "eager", "fp32", 1, CLASS_TOKEN.tokens), TINY, CLASS_TOKEN, rounds=60, extra=0)
SLUG = find_device().slug

DRIVER = """
import sys
from pathlib import Path
from latency.fanout import profile_on_cluster
from tests.latency import ray_nodes
from tests.latency.test_fanout import PLAN
stand = getattr(ray_nodes, sys.argv[3])
for progress in profile_on_cluster(PLAN, sys.argv[1], Path(sys.argv[2]), open_stand=stand):
    pass
"""

ALIVE = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(sum(node["Alive"] for node in ray.nodes()))
"""


def wait_for(happened, what, process=None):
    """Until it has happened; fails where a process ends before, or nothing happens for minutes."""
    deadline = time.monotonic() + PATIENCE
    while not (found := happened()):
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended before {what}: {process.communicate()[1]}")
        if time.monotonic() > deadline:
            pytest.fail(f"never: {what}")
        time.sleep(0.05)
    return found


class Cluster:
    """Two nodes, a and b, that let in who knows the token."""

    def __init__(self, folder, token):
        self.folder, self.token = folder, token
        self.nodes, self.processes = {}, []

    def start(self):
        offers = json.dumps({f"target:{slug}": 1 for slug in (FAKE.slug, SLUG, "another-device-1t")})
        self.nodes["a"] = start_node("a", offers, self.folder, self.token)
        self.address = self.nodes["a"].address
        wait_for(lambda: self.alive(1), "node a is up")
        self.nodes["b"] = start_node(
            "b", json.dumps({f"target:{FAKE.slug}": 1}), self.folder, self.token, self.nodes["a"]
        )
        wait_for(lambda: self.alive(2), "node b is up")

    def end(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
        for node in self.nodes.values():
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def alive(self, count):
        return self.python("-c", ALIVE, self.address).communicate()[0].strip() == str(count)

    def python(self, *arguments, **env):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment(self.token) | env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def vitfit(self, *arguments, **env):
        process = self.python("-m", "api.cli", *arguments, **env)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, " ".join(err.split())


@pytest.fixture(scope="module")
def cluster():
    made = Cluster(Path(tempfile.mkdtemp(prefix="ray-")), secrets.token_hex(32))  # its sockets need a short path
    try:
        made.start()
        yield made
    finally:
        made.end()


def visits_of(journal):
    if not journal.exists():
        return []
    whole = journal.read_bytes().rpartition(b"\n")[0].splitlines()
    return [line for line in map(json.loads, whole) if "point" in line]


def test_a_killed_driver_and_a_killed_node_lose_no_visit_and_repeat_none_that_was_written(cluster, tmp_path):
    journal = tmp_path / "journal"
    first = cluster.python("-c", DRIVER, cluster.address, journal, "node_stand")
    wait_for(lambda: len(visits_of(journal)) > 100, "a hundred visits are made", first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = visits_of(journal)
    assert len(before) < PLAN.visits

    second = cluster.python("-c", DRIVER, cluster.address, journal, "doomed_stand")
    wait_for((cluster.folder / "b-is-stuck").exists, "node b is in the middle of a shard", second)
    cluster.nodes["b"].kill()
    killed_at = time.time()
    _, errors = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, errors

    made = visits_of(journal)
    assert made[: len(before)] == before
    assert Counter((v["round"], v["point"]) for v in made) == {(r, p): 1 for r in range(60) for p in range(18)}
    after = Counter(visit["worker"] for visit in made[len(before) :])
    assert len(after) == 2, "both nodes made visits"
    timed = {name: len((cluster.folder / f"DoomedStand-{name}.timed").read_text().split()) for name in "ab"}
    again = timed["a"] + timed["b"] - after.total()
    assert timed["b"] == 19
    assert 0 <= again < SHARD, "nothing but visits of the shard that b lost was timed again"
    assert timed["a"] in after.values()
    late = {visit["worker"] for visit in made if visit["at"] > killed_at}
    assert len(late) == 1, "the other node made what was left"

    # Node b is slower by a quarter: each worker's visits are divided by its own course of the reference.
    with open_journal(PLAN, journal) as opened:
        ms = {point: np.array(visits) for point, visits in corrected(opened.lines).items()}
    ratios = np.concatenate([ms[point] / truth(point) for point in range(18)])
    np.testing.assert_allclose(ratios, ratios[0])
    table = table_from_journal(PLAN, journal)
    assert table.provenance.device == "fake, 1 thread(s)"
    assert np.isfinite(table.block_ms).all()


def test_the_command_measures_a_table_on_a_node(cluster, tmp_path):
    (tmp_path / "grid.json").write_text(json.dumps(TINY.to_dict()))
    (tmp_path / "arch.json").write_text(CLASS_TOKEN.to_json())
    status, out, err = cluster.vitfit(
        *("profile", tmp_path / "arch.json", "--grid", tmp_path / "grid.json", "--rounds", 1),
        *("--ray", cluster.address, "--on", SLUG, "--out", tmp_path / "t.parquet", "--json"),
    )
    assert status == 0, err
    assert json.loads(out)["target"].startswith(SLUG)
    assert load_table(tmp_path / "t.parquet").kind == "measured"


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("nvidia-a100-1t", r"no node of the cluster offers target:nvidia-a100-1t; offered: .*target:fake-1t"),
        ("another-device-1t", rf"this device is {SLUG}"),
    ],
)
def test_nodes_that_have_not_the_device_are_refused(cluster, tmp_path, on, message):
    status, _, err = cluster.vitfit(
        "profile", "deit-t", "--ray", cluster.address, "--on", on, "--out", tmp_path / "t.parquet"
    )
    assert status == 1
    assert re.search(message, err), err


def test_a_wrong_token_is_no_way_in(cluster, tmp_path):
    status, _, err = cluster.vitfit(
        *("profile", "deit-t", "--ray", cluster.address, "--on", FAKE.slug, "--out", tmp_path / "t.parquet"),
        RAY_AUTH_TOKEN=secrets.token_hex(32),
    )
    assert status == 1
    assert re.search("no way into a Ray cluster at .*: .*AuthenticationError", err), err


def test_without_token_authentication_no_cluster_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(TargetError, match="ray get-auth-token --generate"):
        next(profile_on_cluster(PLAN, "127.0.0.1:1", tmp_path / "journal"))


def test_a_cluster_that_lets_anyone_in_is_not_used(tmp_path, monkeypatch):
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    node = start_node("a", json.dumps({f"target:{FAKE.slug}": 1}), folder, token=None)
    try:
        status = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", node.address]
        wait_for(
            lambda: subprocess.run(status, env=environment(None), capture_output=True, check=False).returncode == 0,
            "the node is up",
            node.process,
        )
        for name, value in environment(secrets.token_hex(32)).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(TargetError, match=r"lets anyone in; .* `ray get-auth-token --generate"):
            next(profile_on_cluster(PLAN, node.address, tmp_path / "journal"))
    finally:
        node.kill()
        shutil.rmtree(folder, ignore_errors=True)
