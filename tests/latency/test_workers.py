"""What a driver does with its workers, without a cluster: who is refused, who is waited for, who is to blame."""

import sys
from types import SimpleNamespace

import pytest

from latency.errors import TableError, TargetError
from latency.fanout import ATTEMPTS, Crew, connection
from latency.grid import Grid
from latency.plan import ProfilePlan
from latency.profiler import open_journal, record
from latency.runtimes import remote_target
from latency.target import Target
from tests.cases import CLASS_TOKEN

TINY = Grid((8, 16), (1, 2), (4, 8), (4,), (8, 16))


def plan_of(device):
    return ProfilePlan(Target(device, "eager", "fp32", 1, CLASS_TOKEN.tokens), TINY, CLASS_TOKEN, rounds=1)


class Gone(Exception):
    actor_init_failed = False


class Failed(Exception):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class FakeRay:
    """Nodes that are listed; each task is done at once, by a function (worker's number, shard) -> lines."""

    exceptions = SimpleNamespace(
        RayActorError=Gone, NodeDiedError=Gone, WorkerCrashedError=Gone, ObjectLostError=Gone, RayTaskError=Failed
    )

    def __init__(self, nodes, do):
        self.listed, self.do, self.killed, self.options, self.hired = nodes, do, [], None, 0

    def nodes(self):
        return [{"Alive": alive, "Resources": resources} for alive, resources in self.listed]

    def remote(self, **options):
        self.options = options
        return lambda _: SimpleNamespace(remote=self.hire)

    def hire(self, plan, open_stand):
        self.hired += 1
        number = self.hired
        tasks = {"begin": lambda: (number, None, object()), "visit": lambda shard: (number, tuple(shard), object())}
        return SimpleNamespace(number=number, **{n: SimpleNamespace(remote=task) for n, task in tasks.items()})

    def wait(self, tasks, timeout):
        return tasks[:1], tasks[1:]

    def get(self, task):
        return self.do(*task[:2])

    def kill(self, worker):
        self.killed.append(worker.number)


def obedient(number, shard):
    return [{"worker": str(number), "round": index, "point": point} for index, point in shard or ()]


def crew(nodes, do=obedient, device="fake-1t", patience=60.0):
    return Crew(FakeRay(nodes, do), plan_of(device), None, patience)


TODO = [(0, point) for point in range(100)]


def made(team):
    return [(line["round"], line["point"]) for lines in team.visits(TODO) for line in lines]


def test_every_visit_is_made_once_and_all_workers_have_a_part():
    seen = set()
    team = crew([(True, {"target:fake-1t": 3})], lambda n, shard: seen.add(n) or obedient(n, shard))
    assert sorted(made(team)) == TODO
    assert seen == {1, 2, 3}


def test_a_worker_that_dies_is_replaced_and_its_shard_made_by_others():
    def do(number, shard):
        if number == 1 and shard:
            raise Gone("node lost")
        return obedient(number, shard)

    team = crew([(True, {"target:fake-1t": 2})], do)
    assert sorted(made(team)) == TODO
    assert team.ray.killed == [1]
    assert team.ray.hired == 3


def test_what_a_worker_had_no_time_for_is_made_later():
    team = crew([(True, {"target:fake-1t": 2})], lambda n, shard: obedient(n, (shard or ())[:3]))
    assert sorted(made(team)) == TODO


def test_a_point_that_takes_down_every_worker_ends_the_run():
    def do(number, shard):
        if shard and (0, 70) in shard:
            raise Gone("out of memory")
        return obedient(number, shard)

    team = crew([(True, {"target:fake-1t": 2})], do)
    with pytest.raises(TableError, match=rf"{ATTEMPTS} workers died .*70.*the journal is kept.*out of memory"):
        made(team)


def test_when_the_last_node_is_gone_it_waits_and_then_says_how_to_go_on():
    def do(number, shard):
        team.ray.listed = []
        raise Gone("node lost")

    team = crew([(True, {"target:fake-1t": 1})], do, patience=0.0)
    with pytest.raises(TableError, match=r"no node with target:fake-1t .* the journal is kept.* same command again"):
        made(team)


def test_a_node_that_offers_what_it_has_not_is_refused():
    def do(number, shard):
        raise Failed(TargetError("this device is amd-epyc-1t"))

    with pytest.raises(TargetError, match="a node that offers target:fake-1t: this device is amd-epyc-1t"):
        made(crew([(True, {"target:fake-1t": 1})], do))


def test_a_gpu_has_one_worker_and_a_node_without_gpus_none():
    nodes = [(True, {"target:a100": 8, "GPU": 2}), (True, {"target:a100": 1}), (False, {"target:a100": 1, "GPU": 1})]
    team = crew(nodes, device="a100")
    assert team.places() == 2
    assert (team.ray.options["num_gpus"], team.ray.options["resources"]) == (1, {"target:a100": 1})
    assert crew([(True, {"target:fake-1t": 1})]).ray.options["num_gpus"] == 0


def test_where_no_node_offers_the_device_it_says_what_is_offered():
    with pytest.raises(
        TargetError, match="no node of the cluster offers target:fake-1t; offered: target:a100, target:b"
    ):
        crew([(True, {"target:b": 1, "CPU": 4}), (True, {"target:a100": 1}), (False, {"target:fake-1t": 1})])


def test_a_worker_with_other_versions_is_refused_by_name_and_nothing_of_it_is_kept(tmp_path):
    def introduced(worker, torch):
        return [{"worker": worker, "reference_ms": 1.0}, {"worker": worker, "machine": {"versions": {"torch": torch}}}]

    with open_journal(plan_of("fake-1t"), tmp_path / "j") as journal:
        record(journal, introduced("first", "2.14"))
        record(journal, introduced("second", "2.14"))
        with pytest.raises(TableError, match=r"begun with torch 2.14; worker third has torch 2.15; install the same"):
            record(journal, introduced("third", "2.15"))
        assert {line["worker"] for line in journal.lines} == {"first", "second"}


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TargetError, match=r"pip install 'vitfit\[ray\]'"), connection("127.0.0.1:1"):
        pass


def test_a_target_elsewhere_needs_no_runtime_here_but_one_that_runs_it_there():
    assert remote_target("nvidia-a100", "tensorrt", "fp16", 8, 197).slug == "nvidia-a100-tensorrt-fp16-b8-n197"
    with pytest.raises(TargetError, match="runtime tensorrt runs on cuda, not on cpu"):
        remote_target("amd-epyc-4t", "tensorrt", "fp16", 8, 197)
