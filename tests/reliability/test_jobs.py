"""What happens to jobs when things die, stand still, fill up or go backwards. The long version is
`benchmarks/reliability.py`."""

import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.blobs import Blobs
from api.job_events import Events
from api.job_workers import Workers
from api.jobs import FINISHED, Job, Jobs, new_id, queue_name
from api.settings import Settings
from tests.processes import children
from tests.reliability.harness import (
    Cluster,
    cluster,
    faults,
    kill_at_random,
    make_library,
    small_jobs,
    submit_all,
    wait_for,
)

pytestmark = pytest.mark.slow

SECONDS = 240

LONG = {"kind": "sparsify", "model": "digits", "data": "digits", "sparsity": 0.5, "gradients": 1_000_000}
"""Hours of one loop without a report of progress."""
SHORT = {"kind": "export", "model": "digits", "format": "standalone"}
COMPRESS = {"kind": "compress", "model": "digits", "data": "digits", "target": "macs", "speedup": 2.0, "exports": False}


@pytest.fixture
def running(tmp_path: Path, database_url: str) -> Iterator[Cluster]:
    url = "" if database_url.startswith("sqlite") else database_url
    with cluster(tmp_path / "data", url) as found:
        yield found
        print(found.logs())  # pytest shows it where a test fails


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path / "data") as found:
        yield found
        print(found.logs())


@pytest.fixture
def jobs(request: pytest.FixtureRequest) -> Iterator[Jobs]:
    name = "running" if "running" in request.fixturenames else "on_sqlite"
    found = Jobs.of(request.getfixturevalue(name).settings)
    yield found
    found.close()


def submit(jobs: Jobs, document: dict[str, Any]) -> str:
    return jobs.submit(document["kind"], document).id


def until(true: Callable[[], object], seconds: float = SECONDS) -> float:
    """Wait; gives how long it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + seconds
        time.sleep(0.1)
    return time.monotonic() - began


def steps(jobs: Jobs, job_id: str) -> list[tuple[str, str]]:
    return [(one.data["step"], one.data["state"]) for one in Events(jobs.ours()).of(job_id) if one.kind == "step"]


def started(jobs: Jobs, job_id: str, step: str) -> Callable[[], bool]:
    return lambda: (step, "started") in steps(jobs, job_id)


def stop_between_transactions(pid: int, folder: Path) -> None:
    """Within one it would hold SQLite's lock, and nobody could write until it wakes up or dies."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        try:
            for path in folder.glob("*.sqlite"):
                with closing(sqlite3.connect(path, timeout=2, isolation_level=None)) as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.05)
        else:
            return


def end(jobs: Jobs, job_id: str) -> Job:
    (found,) = wait_for(jobs, [job_id], SECONDS)
    return found


def test_whoever_is_killed_every_job_ends_once_and_right(running, jobs):
    documents = small_jobs(4)
    for _ in range(2):
        running.start_worker()
    ids = submit_all(jobs, documents)
    assert kill_at_random(running, jobs, ids, kills=2, workers=2, seed=1) > 0
    found = wait_for(jobs, ids, SECONDS)
    assert faults(found, documents, running.folder) == []


def test_one_that_stood_still_and_wakes_up_does_nothing_twice(running, jobs):
    first = running.start_worker()
    id = submit(jobs, COMPRESS)
    until(started(jobs, id, "basis"))
    stop_between_transactions(first.pid, running.folder)
    running.start_worker()
    found = end(jobs, id)
    assert (found.state, found.problem) == ("done", None)
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(30) == 75
    assert jobs.get(id) == found


def test_a_job_that_was_claimed_and_never_begun_is_done_all_the_same(running, jobs):
    """As DBOS leaves it where the database goes away between the claim and the beginning."""
    running.start_worker()
    until(lambda: Workers(jobs.ours()).all())
    (worker,) = Workers(jobs.ours()).all()
    id = submit(jobs, SHORT | {"queue": "elsewhere"})  # which nobody serves
    with jobs._open() as client:
        rows = client._sys_db.tables.workflow_status
        claimed = {"status": "PENDING", "executor_id": worker.executor, "queue_name": queue_name("cpu")}
        with client._sys_db.engine.begin() as connection:
            connection.execute(rows.update().where(rows.c.workflow_uuid == id).values(claimed))
    assert end(jobs, id).state == "done"
    assert steps(jobs, id).count(("export", "started")) == 1
    assert "was claimed and never begun" in running.logs()


def test_cancel_stops_a_loop_that_reports_nothing_and_frees_the_device(running, jobs):
    running.start_worker()
    long, short = submit(jobs, LONG), submit(jobs, SHORT)
    until(started(jobs, long, "phases"))
    time.sleep(2)
    jobs.cancel(long)
    assert until(started(jobs, short, "export"), 30) < 20
    assert end(jobs, short).state == "done"
    assert jobs.get(long).state == "cancelled"
    assert steps(jobs, long) == [("phases", "started")]


def test_one_that_is_told_to_stop_hands_its_job_back_and_another_goes_on_after_the_last_step(running, jobs):
    first = running.start_worker()
    id = submit(jobs, COMPRESS)
    until(started(jobs, id, "saliency"))
    first.terminate()
    assert first.wait(20) == 0
    assert jobs.get(id).state in ("queued", *FINISHED)
    running.start_worker()
    assert end(jobs, id).state == "done"
    assert steps(jobs, id).count(("basis", "started")) == 1


def test_a_job_that_takes_too_long_fails_and_the_next_one_runs(on_sqlite, jobs, monkeypatch):
    monkeypatch.setenv("VITFIT_JOB_TIMEOUTS", '{"sparsify": 4}')
    on_sqlite.start_worker()
    long, short = submit(jobs, LONG), submit(jobs, SHORT)
    found = end(jobs, long)
    assert found.problem is not None
    assert found.problem["type"] == "/problems/job-timeout"
    assert "after 4 seconds" in found.problem["detail"]
    assert end(jobs, short).state == "done"


def test_a_retry_goes_on_after_the_last_finished_step(running, jobs):
    running.start_worker()
    id = submit(jobs, COMPRESS)
    until(started(jobs, id, "saliency"))
    jobs.cancel(id)
    again = jobs.retry(id)
    found = end(jobs, again.id)
    assert (found.state, found.retry_of) == ("done", id)
    assert ("basis", "started") not in steps(jobs, again.id)
    assert set(found.digests) >= {"rebased.safetensors", "compressed.safetensors"}


def test_another_machine_goes_on_with_the_files_of_the_first(running, jobs):
    """Its folder of jobs is another one; the blobs are shared."""
    first = running.start_worker()
    id = submit(jobs, COMPRESS)
    until(started(jobs, id, "saliency"))
    first.terminate()
    first.wait(20)
    shutil.rmtree(running.folder / "jobs" / id)
    running.start_worker()
    assert end(jobs, id).state == "done"
    assert steps(jobs, id).count(("basis", "started")) == 1


def test_the_process_that_does_a_step_may_die_and_is_started_again(on_sqlite, jobs):
    worker = on_sqlite.start_worker()
    id = submit(jobs, LONG)
    until(started(jobs, id, "phases"))
    killed: set[int] = set()
    while len(killed) < 3:  # a dead one is among the children until the worker has looked
        until(lambda: set(children(worker.pid)) - killed)
        pid = min(set(children(worker.pid)) - killed)
        time.sleep(1)
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    found = end(jobs, id)
    assert found.problem is not None
    assert found.problem["type"] == "/problems/job-lost"
    assert "died 3 times while it did phases" in found.problem["detail"]
    assert worker.poll() is None


def _cpu_taken(root: Path) -> bool:
    """Whether a job of this data folder has the CPU; one whose step has begun may still be loading torch."""
    path = root / "jobs" / ".devices" / "cpu"
    if not path.exists():
        return False
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_a_profile_waits_for_others_on_the_device_and_they_for_it(on_sqlite, jobs):
    arch = {"image_size": 16, "patch_size": 8, "in_chans": 3, "num_classes": 5, "embed_dim": 16}
    arch["blocks"] = [{"num_heads": 2, "qk_dim": 8, "v_dim": 8, "mlp_dim": 16}]
    for _ in range(2):
        on_sqlite.start_worker()
    long = submit(jobs, LONG)
    until(lambda: _cpu_taken(on_sqlite.folder))
    profile = submit(jobs, {"kind": "profile", "architecture": arch, "points": 32, "rounds": 1})
    until(lambda: (noted := jobs.get(profile).progress) is not None and noted.stage == "waiting for the device")
    jobs.cancel(long)
    found = end(jobs, profile)
    assert (found.state, found.problem) == ("done", None)


# --- disks, clocks, clients --------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system of its own; gives what mounts it again with other options."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs root, and the right to mount")

    def again(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, capture_output=True)

    try:
        yield again
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_fails_the_job_with_its_reason_and_a_retry_ends_well(on_sqlite, jobs):
    with small_disk(on_sqlite.folder / "jobs", "48k") as again:
        on_sqlite.start_worker()
        failed = end(jobs, submit(jobs, SHORT))
        assert failed.problem is not None
        assert (failed.problem["status"], failed.problem["type"]) == (507, "/problems/storage-full")
        again("size=64m")
        assert end(jobs, jobs.retry(failed.id).id).state == "done"
        on_sqlite.close()
    assert not list((on_sqlite.folder / "jobs").iterdir())


def test_a_folder_that_cannot_be_written_takes_no_job_and_answers_the_rest(tmp_path):
    with small_disk(tmp_path / "data", "64m") as again:
        settings = Settings(data_dir=make_library(tmp_path / "data"), worker=False)
        again("ro")
        with TestClient(create_app(settings), raise_server_exceptions=False) as client:
            refused = client.post("/v1/jobs", json=SHORT)
            assert (refused.status_code, refused.json()["type"]) == (503, "/problems/not-ready")
            assert client.get("/v1/jobs").status_code == 503
            assert client.get("/v1/targets").status_code == 200
            assert client.get("/v1/presets").status_code == 200


def test_two_services_on_one_file_share_its_jobs(tmp_path):
    settings = Settings(data_dir=make_library(tmp_path / "data"), worker_idle_seconds=5.0)
    with TestClient(create_app(settings)) as one, TestClient(create_app(settings)) as two:
        ids = [client.post("/v1/jobs", json=SHORT).json()["id"] for client in (one, two, one, two)]
        assert len(set(ids)) == 4
        found = wait_for(one.app.state.jobs, ids, SECONDS)
        assert [job.state for job in found] == ["done"] * 4
        assert two.get(f"/v1/jobs/{ids[0]}").json() == one.get(f"/v1/jobs/{ids[0]}").json()
        file = one.get(f"/v1/jobs/{ids[0]}").json()["files"]["torch_model"]
        assert two.get(file).content == one.get(file).content
        assert len({job.digests["model-torch/model.py"] for job in found}) == 1
        assert Blobs.of(settings).exists(found[0].digests["model-torch/model.py"])


def test_a_clock_that_is_set_back_loses_no_job(on_sqlite, jobs, monkeypatch):
    first = submit(jobs, SHORT)
    monkeypatch.setattr("api.jobs.new_id", lambda: new_id(lambda: time.time_ns() - 86_400 * 10**9))
    second = submit(jobs, SHORT)
    assert second < first
    assert [job.id for job in jobs.newest(10)] == [first, second]
    assert [job.id for job in jobs.newest(1, before=first)] == [second]
    on_sqlite.start_worker()
    assert [job.state for job in wait_for(jobs, [first, second], SECONDS)] == ["done", "done"]


def test_a_client_that_is_gone_in_the_middle_of_a_stream_frees_its_place(tmp_path, monkeypatch):
    import httpx

    from tests.api.test_jobs_running import serving

    monkeypatch.setenv("VITFIT_MAX_EVENT_STREAMS", "1")
    monkeypatch.setenv("VITFIT_WORKER", "false")
    with serving(make_library(tmp_path / "data")) as (client, _):
        id = client.post("/v1/jobs", json=SHORT).json()["id"]
        path = f"/v1/jobs/{id}/events"
        with client.stream("GET", path) as stream:
            lines = stream.iter_lines()  # kept: its end would close the stream
            assert next(lines).startswith("retry")
            with httpx.Client(base_url=client.base_url, timeout=60) as other, other.stream("GET", path) as second:
                assert second.status_code == 503
                assert json.loads(second.read())["type"] == "/problems/too-many-streams"
        until(lambda: _opens(client, path), 30)


def _opens(client: Any, path: str) -> bool:
    with client.stream("GET", path) as stream:
        return bool(stream.status_code == 200)
