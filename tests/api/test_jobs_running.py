"""Jobs as users meet them: a service and its worker, two processes, a real checkpoint, and kill -9."""

import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from api.app import create_app
from api.job_bodies import CompressReport
from api.job_workers import LOCKS, let_go
from api.jobs import MOST_STARTS
from api.settings import Settings
from tests.api.factories import DIGITS, GRATINGS, save_model
from tests.api.test_service_socket import ROOT, first_match
from tests.processes import children
from vit.architecture import Architecture
from vit.checkpoint import load_checkpoint
from vit.cost import macs

pytestmark = pytest.mark.slow

Json = dict[str, Any]
QUICK = {"kind": "compress", "model": "digits", "data": "digits", "target": "macs", "speedup": 2.0, "images": 128}
SLOW = QUICK | {"model": "gratings", "data": "gratings", "images": 8000, "exports": False}
SLOW_ENOUGH = SLOW | {"data": "gratings:train=4000,test=200", "images": 4000}
SECONDS = 120


@contextmanager
def serving(folder: Path, threads: int = 1) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """A service on a data folder; with more than one thread, jobs load images in processes of their own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "VITFIT_DATA_DIR": str(folder),
        "OMP_NUM_THREADS": str(threads),
    }
    environment |= {"VITFIT_WORKER_IDLE_SECONDS": "1"}
    command = [sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app", "--port", "0", "--no-use-colors"]
    command += ["--no-access-log"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = first_match(process.stderr, r"running on (http://127\.0\.0\.1:\d+)")
        with httpx.Client(base_url=address, timeout=60) as client:
            yield client, process
    finally:
        process.kill()
        print(process.communicate(timeout=60)[1])  # pytest shows it where a test fails


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("library")
    save_model(DIGITS, root / "models" / "digits.safetensors")
    save_model(GRATINGS, root / "models" / "gratings.safetensors")
    (root / "datasets" / "gone").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for split, name, index in itertools.product(("train", "val"), "abcdefghij", range(3)):
        path = root / "datasets" / "noise" / split / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (20, 20), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with serving(folder, threads=2) as (client, _):
        yield client


def start(client: httpx.Client, request: Json) -> str:
    answer = client.post("/v1/jobs", json=request)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    return str(answer.json()["id"])


def job(client: httpx.Client, id: str) -> Json:
    answer = client.get(f"/v1/jobs/{id}")
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def wait(client: httpx.Client, id: str, until: Callable[[Json], bool]) -> Json:
    deadline = time.monotonic() + SECONDS
    while not until(found := job(client, id)):
        assert found["state"] in ("queued", "running"), found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def ended(found: Json) -> bool:
    return found["state"] in ("done", "failed", "cancelled")


def at_stage(stage: str) -> Callable[[Json], bool]:
    return lambda found: found["state"] == "running" and (found["progress"] or {}).get("stage") == stage


def test_a_checkpoint_is_compressed_to_a_budget_and_taken_home(client, tmp_path):
    id = start(client, QUICK)
    found = wait(client, id, ended)
    assert (found["state"], found["error"]) == ("done", None)
    assert found["progress"] == {"stage": "export", "done": 2, "total": 2}
    assert found["created_at"].endswith("Z")
    assert found["finished_at"] >= found["created_at"]
    result = found["result"]
    assert result["latency_ms"] <= result["budget_ms"] == pytest.approx(macs(DIGITS) / 1e6 / 2)
    assert result["calibration"] == {**result["calibration"], "data": "digits", "images": 128}

    def download(kind: str) -> bytes:
        answer = client.get(found["files"][kind])
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment")
        return answer.content

    (tmp_path / "small.safetensors").write_bytes(download("checkpoint"))
    small = load_checkpoint(tmp_path / "small.safetensors")
    assert small.arch == Architecture.from_dict(result["after"]["architecture"])
    assert [step["step"] for step in small.lineage] == ["rebase", "compress"]

    report = json.loads(download("report"))
    assert set(report) | {"files"} == set(CompressReport.model_fields), "the answer leaves nothing out"
    assert CompressReport.model_validate(report | {"files": {}}).kept == result["kept"]

    import onnxruntime

    images = np.zeros((2, 1, 16, 16), dtype=np.float32)
    session = onnxruntime.InferenceSession(download("onnx"))
    assert session.run(None, {session.get_inputs()[0].name: images})[0].shape == (2, 10)
    (tmp_path / "model.py").write_bytes(download("torch_model"))
    (tmp_path / "model.safetensors").write_bytes(download("torch_weights"))
    program = "import torch, model; print(tuple(model.load()(torch.zeros(2, 1, 16, 16)).shape))"
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout == "(2, 10)\n", run.stderr


def nobody_works_on(folder: Path) -> bool:
    return all(let_go(folder, path.name) for path in (folder / LOCKS).iterdir())


def wait_for_nobody(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not nobody_works_on(folder):
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.05)


def test_a_worker_without_work_ends_and_the_next_job_on_a_folder_of_images_starts_another(client, folder):
    wait_for_nobody(folder)
    found = wait(client, start(client, QUICK | {"data": "noise", "batch_size": 16, "exports": False}), ended)
    assert (found["state"], found["error"]) == ("done", None)
    calibration = found["result"]["calibration"]
    assert (calibration["data"], calibration["images"]) == ("datasets/noise", 16), "whole batches of 30 images"


def test_jobs_take_turns_can_be_cancelled_and_fail_with_a_problem(client, folder):
    running = start(client, SLOW)
    waiting = start(client, SLOW)
    failing = start(client, QUICK | {"data": "gone"})
    wait(client, running, lambda found: found["state"] == "running")
    (folder / "datasets" / "gone").rmdir()
    began = time.monotonic()
    states = {each["id"]: each["state"] for each in client.get("/v1/jobs").json()["jobs"]}
    assert [states[id] for id in (running, waiting, failing)] == ["running", "queued", "queued"]
    assert list(states) == sorted(states, reverse=True), "the newest first"
    assert client.get("/health/ready").status_code == 200
    assert time.monotonic() - began < 5, "requests are answered while a job runs"

    cancelled = client.post(f"/v1/jobs/{waiting}/cancel").json()
    assert (cancelled["state"], cancelled["progress"]) == ("cancelled", None)
    wait(client, running, at_stage("tokens"))
    assert client.post(f"/v1/jobs/{running}/cancel").json()["state"] == "cancelled"
    failed = wait(client, failing, ended)
    assert not (folder / "jobs" / running / "rebased.safetensors").exists(), "stopped inside its first step"
    assert [job(client, id)["state"] for id in (running, waiting)] == ["cancelled", "cancelled"]

    assert failed["state"] == "failed"
    assert failed["result"] is None
    assert failed["files"] == {}
    problem = failed["error"]
    assert (problem["status"], problem["instance"]) == (422, f"/v1/jobs/{failing}")
    assert "datasets/gone" in problem["detail"]
    assert str(folder) not in json.dumps(failed)
    missing = client.get(f"/v1/jobs/{failing}/files/compressed.safetensors")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    assert "it is failed" in missing.json()["detail"]
    again = client.post(f"/v1/jobs/{failing}/cancel")
    assert (again.status_code, again.json()["state"]) == (200, "failed"), "what is finished stays as it is"


def test_whatever_is_killed_the_job_goes_on_after_its_last_step(folder, tmp_path):
    root = tmp_path / "library"
    shutil.copytree(folder / "models", root / "models")
    with serving(root) as (client, process):
        id = start(client, SLOW_ENOUGH)
        wait(client, id, at_stage("tokens"))
        (worker,) = children(process.pid)
        os.kill(worker, signal.SIGKILL)
        wait(client, id, at_stage("saliency"))
        process.kill()
        process.wait()
    wait_for_nobody(root)  # the worker does not outlive its service
    files = root / "jobs" / id
    rebased = (files / "rebased.safetensors").stat()
    assert not (files / "saliency.safetensors").exists()

    with serving(root) as (client, process):
        found = wait(client, id, ended)
        assert (found["state"], found["error"]) == ("done", None)
        assert (files / "rebased.safetensors").stat().st_mtime_ns == rebased.st_mtime_ns, "not done again"
        assert client.get(found["files"]["checkpoint"]).status_code == 200
        process.terminate()
        process.wait(15)
    assert nobody_works_on(root)


def test_a_job_that_takes_its_process_along_every_time_is_given_up(folder, tmp_path):
    shutil.copytree(folder / "models", tmp_path / "models")
    with TestClient(create_app(Settings(data_dir=tmp_path, worker=False))) as waiting:
        id = waiting.post("/v1/jobs", json=QUICK).json()["id"]
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as database, database:
        database.execute("UPDATE workflow_status SET recovery_attempts = ?", (MOST_STARTS,))
    with serving(tmp_path) as (client, _):
        found = wait(client, id, ended)
    assert (found["state"], found["error"]["type"]) == ("failed", "/problems/job-lost")
    assert f"died {MOST_STARTS} times" in found["error"]["detail"]
