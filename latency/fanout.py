"""Time a grid on many equal machines at once: its visits, in shards, over the nodes of a Ray cluster.

A node offers its devices as a custom resource, `target:SLUG`; one worker sits on each of them and makes visits as
`profiler.profile` does on one machine. The journal stays with this process and is all that a run consists of: what a
node takes with it when it dies is a shard that is made again elsewhere.

Members of a Ray cluster run each other's pickles, so a cluster without token authentication is not used at all.
"""

import logging
import math
import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latency.bench import Bench, Stand, Visitor
from latency.errors import TableError, TargetError
from latency.plan import Line, ProfilePlan, Visit, pending
from latency.profiler import ProfileProgress, introduction, open_journal, record
from latency.runtimes import Device, cpu_threads, device_of

OpenStand = Callable[[ProfilePlan], tuple[Device, Stand]]
"""Called on a node: the node's device, and what times on it."""

SHARD, SHARD_SECONDS = 32, 5.0
"""Visits handed out at once, and seconds after which a worker hands in what it has made of them."""

ATTEMPTS = 3
"""Workers that may die over a visit until it is the visit that is to blame."""

PATIENCE, POLL = 600.0, 1.0
"""Seconds to wait for a node when there is none, and between two looks for new ones."""

ANSWER_SECONDS = 60.0
"""How long a cluster may take to answer at all."""

SWITCH_ON = (
    "a Ray cluster runs whatever its members send, so vitfit uses none without token authentication: make a token with "
    "`ray get-auth-token --generate`, copy ~/.ray/auth_token to every node, and set RAY_AUTH_MODE=token there for "
    "`ray start`, and for vitfit"
)


def local_stand(plan: ProfilePlan) -> tuple[Device, Stand]:
    """This node's device.

    Raises:
        TargetError: it is not the plan's.
    """
    device = device_of(plan.target)
    return device, Bench(plan, device)


def profile_on_cluster(
    plan: ProfilePlan,
    address: str,
    journal_path: Path,
    *,
    patience: float = PATIENCE,
    open_stand: OpenStand = local_stand,
) -> Iterator[ProfileProgress]:
    """Time what the plan asks for on a cluster's nodes; the journal at `journal_path` holds the results.

    Yields after each visit. A run that was killed continues: no visit that is in the journal is lost or repeated.

    Args:
        address: `HOST:PORT` of the cluster's head; this machine must be one of its nodes.
        patience: seconds to wait for a node when the last one is gone.

    Raises:
        TargetError: Ray is not installed, the cluster cannot be used, or none of its nodes offers the plan's device.
        JournalError: the journal of another plan.
        TableError: nodes with different versions, or no node left.
    """
    with open_journal(plan, journal_path) as journal:
        done = sum("point" in line for line in journal.lines)
        if not pending(plan, journal.lines):
            return
        with connection(address) as ray:
            crew = Crew(ray, plan, open_stand, patience)
            while todo := pending(plan, journal.lines):
                for lines in crew.visits(todo):
                    record(journal, lines)
                    for _ in filter(lambda line: "point" in line, lines):
                        done += 1
                        yield ProfileProgress(min(done, plan.visits), plan.visits)


@contextmanager
def connection(address: str) -> Iterator[Any]:
    """Ray, connected; its workers end with the connection.

    Raises:
        TargetError: Ray is not installed, authentication is off here or there, or no cluster lets us in.
    """
    try:
        import ray
    except ImportError:
        raise TargetError("profiling on a cluster needs the package ray: pip install 'vitfit[ray]'") from None
    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise TargetError(f"RAY_AUTH_MODE is not token; {SWITCH_ON}")
    # A cluster without authentication takes any token for good: only what it says to a stranger tells.
    if not (refusal := _answer(address, {"RAY_AUTH_MODE": "disabled"})):
        raise TargetError(f"the Ray cluster at {address} lets anyone in; {SWITCH_ON}")
    if "authentication" not in refusal.lower() or (refusal := _answer(address, {})):
        raise TargetError(f"no way into a Ray cluster at {address}: {refusal}")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise TargetError(
            f"no way into a Ray cluster at {address}: {error}; is this machine one of its nodes?"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _answer(address: str, changes: dict[str, str]) -> str:
    """What a cluster says to `ray status` in this environment with changes; "" where it answers the question."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter, and no shell
            command, env=os.environ | changes, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer for {ANSWER_SECONDS:.0f} s"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]


class Worker:
    """Makes visits on a node; lives in a process of its own there."""

    def __init__(self, plan: ProfilePlan, open_stand: OpenStand) -> None:
        self.plan, self.open_stand = plan, open_stand

    def begin(self) -> list[Line]:
        """
        Raises:
            TargetError: the node's device is not the plan's.
        """
        import ray

        context = ray.get_runtime_context()
        self.device, stand = self.open_stand(self.plan)
        self.visitor = Visitor(stand, worker=f"{context.get_node_id()[:8]}-{context.get_actor_id()[:8]}")
        with self.device.active():
            return introduction(self.plan, self.device, self.visitor)

    def visit(self, shard: Sequence[Visit]) -> list[Line]:
        """Lines of the first visits of a shard, as many as there is time for; they end with a look at the reference."""
        lines: list[Line] = []
        until = time.monotonic() + SHARD_SECONDS
        with self.device.active():
            for visit in shard:
                lines += self.visitor.visit(visit)
                if time.monotonic() > until:
                    break
            lines.append(self.visitor.look())
        return lines


class Crew:
    """The workers of a cluster: one for each device that its living nodes offer."""

    def __init__(self, ray: Any, plan: ProfilePlan, open_stand: OpenStand, patience: float) -> None:
        """
        Raises:
            TargetError: no node offers the plan's device.
        """
        self.ray, self.patience = ray, patience
        self.resource = f"target:{plan.target.device}"
        self.gpus = 0 if cpu_threads(plan.target.device) else 1
        options = {"num_cpus": 0, "num_gpus": self.gpus, "resources": {self.resource: 1}, "max_restarts": 0}
        worker = ray.remote(**options)(Worker)
        self.hire: Callable[[], Any] = lambda: worker.remote(plan, open_stand)
        self.idle: list[Any] = []
        self.tasks: dict[Any, tuple[Any, list[Visit]]] = {}  # what is being done: by whom, and which visits
        self.deaths: Counter[Visit] = Counter()
        self.seen = time.monotonic()  # a worker at its work
        errors = ray.exceptions
        self.gone = (errors.RayActorError, errors.NodeDiedError, errors.WorkerCrashedError, errors.ObjectLostError)
        if not self.places():
            offered = sorted({name for node in self.nodes() for name in node if name.startswith("target:")})
            raise TargetError(
                f"no node of the cluster offers {self.resource}"
                + (" and a GPU" if self.gpus else "")
                + f"; offered: {', '.join(offered) or 'no target:*'}; start nodes of this device with "
                f"ray start --address ... --resources '{{\"{self.resource}\": 1}}'"
            )

    def nodes(self) -> list[dict[str, float]]:
        """Resources of every living node."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def places(self) -> int:
        """Workers that have a place: one on each device, so that a GPU is timed by one at a time."""
        return sum(
            int(min(node.get(self.resource, 0), node.get("GPU", 0) if self.gpus else float("inf")))
            for node in self.nodes()
        )

    def visits(self, todo: Sequence[Visit]) -> Iterator[list[Line]]:
        """Make all visits, in any order; yields what a worker has to say at a time, for the journal.

        Raises:
            TargetError: a node has another device than it offers.
            TableError: no node is left, or one visit takes down every worker that tries.
        """
        queue = deque(todo)
        while queue or any(shard for _, shard in self.tasks.values()):
            places = self.places()
            self._recruit(places)
            while self.idle and queue:
                count = min(SHARD, math.ceil(len(queue) / max(1, places)))  # the last of a round are for all
                worker, shard = self.idle.pop(), [queue.popleft() for _ in range(count)]
                self.tasks[worker.visit.remote(shard)] = worker, shard
            for task in self._finished():
                worker, shard = self.tasks.pop(task)
                lines = self._result(task, worker, shard)
                made = {(line["round"], line["point"]) for line in lines or () if "point" in line}
                queue.extendleft(visit for visit in reversed(shard) if visit not in made)
                if lines is not None:
                    self.idle.append(worker)
                    yield lines

    def _recruit(self, places: int) -> None:
        """A worker for every place; those who are too many wait for one."""
        for _ in range(places - len(self.idle) - len(self.tasks)):
            worker = self.hire()
            self.tasks[worker.begin.remote()] = worker, []

    def _finished(self) -> list[Any]:
        if self.idle or any(shard for _, shard in self.tasks.values()):
            self.seen = time.monotonic()
        elif time.monotonic() - self.seen > self.patience:
            raise TableError(
                f"no node with {self.resource} has come up for {self.patience:.0f} s; the journal is kept: "
                "start nodes and give the same command again to go on"
            )
        if not self.tasks:
            time.sleep(POLL)
            return []
        return list(self.ray.wait(list(self.tasks), timeout=POLL)[0])

    def _result(self, task: Any, worker: Any, shard: list[Visit]) -> list[Line] | None:
        """A worker's lines; None: it is gone."""
        try:
            lines: list[Line] = self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TargetError):
                raise TargetError(f"a node that offers {self.resource}: {error.cause}") from None
            raise
        except self.gone as error:
            if getattr(error, "actor_init_failed", False):
                raise TargetError(f"no worker starts on a node; is vitfit installed there? {error}") from None
            self.ray.kill(worker)  # where it was only out of reach
            self.deaths.update(shard)
            if fatal := [visit[1] for visit in shard if self.deaths[visit] >= ATTEMPTS]:
                raise TableError(
                    f"{ATTEMPTS} workers died while they timed some of the points {fatal}; the journal is kept. "
                    f"The last one: {error}"
                ) from None
            return None
        return lines
