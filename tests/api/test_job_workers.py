"""Who lives, who is dead, whose device it is: with a scripted clock, and with real locks."""

import subprocess
import sys
from pathlib import Path

import pytest

from api.db import Database, normal_url
from api.device_locks import device_held, folder_owned
from api.job_workers import BEAT_SECONDS, Watch, Worker, Workers, hold, let_go, new_executor, remove_lock
from tests.api.test_service_socket import ROOT


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def worker(executor: str, beat: int) -> Worker:
    return Worker(executor, executor, "host", "cpu", None, beat, "", "")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(tmp_path: Path, clock: Clock) -> Watch:
    return Watch(20.0, tmp_path, clock)


def test_one_whose_number_stands_still_for_long_enough_is_dead_and_one_whose_number_grows_is_not(watch, clock):
    dead, beat = set(), 0
    while not dead and clock.now < 100:
        dead = watch.dead([worker("still", 7), worker("alive", beat)])
        clock.now, beat = clock.now + BEAT_SECONDS, beat + 1
    assert dead == {"still"}
    assert 20.0 <= clock.now - BEAT_SECONDS <= 20.0 + 2 * BEAT_SECONDS


def test_one_that_moves_again_in_time_is_counted_anew(watch, clock):
    for beat in (1, 1, 1, 1, 2, 2, 2, 2, 2):
        assert watch.dead([worker("slow", beat)]) == set()
        clock.now += 4.0


def test_time_in_which_nobody_could_look_kills_nobody(watch, clock):
    watch.dead([worker("a", 1)])
    clock.now += 1_000_000.0  # the database was away, or this process was stopped
    assert watch.dead([worker("a", 1)]) == set()
    clock.now -= 500_000.0  # what no monotonic clock does
    assert watch.dead([worker("a", 1)]) == set()


def test_on_one_machine_the_dead_are_known_at_once(tmp_path, watch):
    program = (
        "import sys; from pathlib import Path; from api.job_workers import hold\n"
        f"lock = hold(Path({str(tmp_path)!r}), 'other'); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert not let_go(tmp_path, "other")
    assert watch.dead([worker("other", 0)]) == set()
    process.kill()
    process.communicate()
    assert let_go(tmp_path, "other")
    assert watch.dead([worker("other", 0)]) == {"other"}
    assert not let_go(tmp_path, "of another machine")
    remove_lock(tmp_path, "other")
    assert not let_go(tmp_path, "other")


def test_a_name_is_never_used_again(tmp_path):
    first, second = new_executor("gpu box/1"), new_executor("gpu box/1")
    assert first != second
    assert "/" not in first
    with hold(tmp_path, first):
        assert not let_go(tmp_path, first)


def test_rows_of_workers_come_beat_and_go(database_url):
    workers = Workers(database := Database(normal_url(database_url)))
    workers.enter("a-1", "a", "cpu")
    workers.enter("b-1", "b", "cuda")
    assert workers.beat("a-1", "0" * 32)
    assert workers.beat("a-1", None)
    found = {one.executor: one for one in workers.all()}
    assert (found["a-1"].beat, found["b-1"].beat, found["b-1"].queue) == (2, 0, "cuda")
    workers.leave(["a-1"])
    assert not workers.beat("a-1", None), "who was taken for dead learns it"
    assert [one.executor for one in workers.all()] == ["b-1"]
    database.close()


HOLDER = """
import sys
from pathlib import Path
from api.device_locks import device_held, folder_owned
with device_held(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "alone", lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


class Stop(Exception):
    """What a test raises where a device is taken."""


def refuse() -> None:
    raise Stop


@pytest.mark.parametrize(
    ("held", "wanted", "free"),
    [
        (("cpu", "shared"), ("cpu", False), True),
        (("cpu", "shared"), ("cpu", True), False),
        (("cpu", "alone"), ("cpu", False), False),
        (("cpu", "alone"), ("cuda-0", False), False),
        (("cuda-0", "alone"), ("cuda-0", False), False),
        (("cuda-0", "alone"), ("cuda-1", True), True),
        (("cuda-0", "alone"), ("cpu", False), True),
        (("cuda-0", "alone"), ("cpu", True), False),
    ],
)
def test_who_measures_is_alone_on_the_device(tmp_path, held, wanted, free):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), *held],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        taken = False
        try:
            with device_held(tmp_path, *wanted, refuse):
                taken = True
        except Stop:
            pass
        assert taken == free
    finally:
        process.kill()
        process.communicate()
    with device_held(tmp_path, "cpu", True, refuse):
        pass


def test_who_takes_a_folder_over_ends_who_still_writes_there(tmp_path):
    program = HOLDER.replace(
        'device_held(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "alone", lambda: None)', "HELD"
    )
    program = program.replace("HELD", "folder_owned(Path(sys.argv[1]))")
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "job")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with folder_owned(tmp_path / "job"):
        assert process.wait(10) == -9
    process.communicate()
