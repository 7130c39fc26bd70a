"""Jobs that are taken on or refused; nothing here does one, for the service has no worker."""

import time
from pathlib import Path

import pytest
import torch
from fastapi import FastAPI
from safetensors.torch import save_file
from starlette.testclient import TestClient

from api.app import create_app
from api.compress_steps import CompressJob
from api.job_bodies import RESULTS, JobKind
from api.job_checks import CHECKS
from api.job_inputs import BUILT_IN
from api.job_kinds import KINDS
from api.job_requests import REQUESTS, CompressJobRequest, Criterion, Labels, Method, RecipeName
from api.jobs import Jobs, NoSuchJobError, Progress
from api.library import Library
from api.settings import Settings
from recovery.data import BUILT_IN as LOADABLE
from recovery.data import load_dataset
from recovery.recipes import RECIPES
from recovery.refit import RIDGE
from search.criteria import CRITERIA
from search.saliency import save_saliency
from sparsity.methods import METHODS
from tests.api.factories import DIGITS, TINY, TINY_TARGET, save_model
from tests.reference import random_saliency

REQUEST = {"kind": "compress", "model": "digits", "data": "digits", "target": "macs", "speedup": 2.0}
REBASED = {"step": "rebase", "layer_norm": True, "skipped": []}


@pytest.fixture
def data_dir(data_dir: Path) -> Path:
    save_model(DIGITS, data_dir / "models" / "digits.safetensors")
    save_model(DIGITS, data_dir / "models" / "rebased.safetensors", (REBASED,))
    save_model(TINY, data_dir / "models" / "tiny.safetensors")
    save_model(DIGITS.replace(num_classes=0), data_dir / "models" / "headless.safetensors")
    (data_dir / "models" / "broken.safetensors").write_bytes(b"no tensors")
    save_file({"layers.0.weight": torch.zeros(2)}, data_dir / "models" / "swin.safetensors")
    (data_dir / "datasets" / "pets").mkdir(parents=True)
    save_saliency(random_saliency(DIGITS, seed=0), data_dir / "saliencies" / "digits.safetensors")
    return data_dir


@pytest.fixture
def app(data_dir: Path) -> FastAPI:
    return create_app(Settings(data_dir=data_dir, shipped_tables=False, worker=False))


@pytest.fixture
def jobs(app: FastAPI) -> Jobs:
    found: Jobs = app.state.jobs
    return found


def start(client: TestClient, **request: object) -> dict[str, object]:
    answer = client.post("/v1/jobs", json=REQUEST | request)
    assert answer.status_code == 202, answer.text
    found: dict[str, object] = answer.json()
    return found


def test_a_job_waits_with_its_request_as_it_was_understood(client):
    answer = client.post("/v1/jobs", json=REQUEST)
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["state"] == "queued"
    assert job["request"] == {**job["request"], **REQUEST, "images": 1024, "criterion": "gates", "budget_ms": None}
    assert [job[name] for name in ("progress", "finished_at", "error", "result")] == [None] * 4
    assert client.get(f"/v1/jobs/{job['id']}").json() == job


def test_jobs_are_counted_by_state_however_many_there_are(client, jobs):
    assert jobs.counts() == dict.fromkeys(("queued", "running", "done", "failed", "cancelled"), 0)
    ids = [start(client)["id"] for _ in range(3)]
    client.post(f"/v1/jobs/{ids[0]}/cancel")
    assert jobs.counts() == {"queued": 2, "running": 0, "done": 0, "failed": 0, "cancelled": 1}
    assert 'vitfit_jobs{state="queued"} 2.0' in client.get("/metrics").text


def test_a_job_is_still_there_after_a_restart(client, data_dir):
    job = start(client)
    again = create_app(Settings(data_dir=data_dir, worker=False))
    with TestClient(again) as other:
        assert other.get(f"/v1/jobs/{job['id']}").json() == job


def test_the_newest_jobs_come_first_and_as_many_as_asked_for(client):
    assert client.get("/v1/jobs").json() == {"jobs": [], "next": None}
    ids = [start(client)["id"] for _ in range(3)]
    listed = client.get("/v1/jobs").json()["jobs"]
    assert [job["id"] for job in listed] == ids[::-1]
    assert "result" not in listed[0]
    assert len(client.get("/v1/jobs?limit=2").json()["jobs"]) == 2


@pytest.mark.parametrize("limit", [0, 101, "many"])
def test_a_limit_that_is_none_is_refused(refused, limit):
    refused("GET", f"/v1/jobs?limit={limit}", 422, "invalid-request", field="limit", says=("limit must be",))


@pytest.mark.parametrize(
    ("request_", "kind", "field", "says"),
    [
        ({"kind": "bake"}, "invalid-request", "kind", "kind must be one of 'profile', 'saliency', 'compress', 'prune'"),
        ({"speedup": None}, "invalid-request", None, "exactly one of budget_ms and speedup, got neither"),
        ({"budget_ms": 0.1}, "invalid-request", None, "exactly one of budget_ms and speedup, got both"),
        ({"images": 0}, "invalid-request", "images", "images must be at least 1, got 0"),
        ({"criterion": "luck"}, "invalid-request", "criterion", "criterion must be one of 'gates'"),
        ({"pretrained": True}, "invalid-request", "pretrained", "is no field here; the fields are"),
        ({"model": "nope"}, "unknown-name", "model", "unknown model 'nope'; known: broken, digits"),
        ({"model": "../models/digits"}, "unknown-name", "model", "unknown model"),
        ({"model": "broken"}, "invalid-checkpoint", "model", "broken.safetensors is no readable checkpoint"),
        (
            {"model": "swin"},
            "invalid-checkpoint",
            "model",
            "swin.safetensors is a safetensors file but no vitfit checkpoint; "
            "bring weights of a timm model (vit_*, deit_*, deit3_*) in with `vitfit import",
        ),
        ({"model": "headless"}, "unsupported-model", "model", "headless has no classifier"),
        ({"data": "nope"}, "unknown-name", "data", "unknown data 'nope'; known: digits, gratings, plaids, pets"),
        ({"data": "../datasets/pets"}, "unknown-name", "data", "unknown data"),
        ({"data": "hfds:pets"}, "unknown-name", "data", "unknown data 'hfds:pets'"),
        ({"data": "hfds:pets,download=yes"}, "unknown-name", "data", "unknown data"),
        ({"data": "wds:datasets/pets"}, "unknown-name", "data", "unknown data"),
        (
            {"data": "gratings:noise=1"},
            "unsupported-model",
            "data",
            "(16, 1, (24, 24)), the model has (10, 1, (16, 16))",
        ),
        ({"target": "nope"}, "unknown-name", "target", "unknown target 'nope'"),
        ({"target": TINY_TARGET.slug}, "target-mismatch", "target", "made for 5 tokens, the architecture has 17"),
        ({"budget_ms": 1e-4, "speedup": None}, "budget-out-of-range", "budget_ms", "ask for"),
        ({"speedup": 1e6}, "budget-out-of-range", "speedup", "ask for"),
        ({"protect": [7]}, "invalid-constraints", "protect", "no block 7 to protect"),
        ({"saliency": "nope"}, "unknown-name", "saliency", "unknown saliency 'nope'; known: digits, tiny"),
        ({"saliency": "digits"}, "invalid-saliency", "saliency", "digits is not in its basis"),
        ({"model": "rebased", "saliency": "tiny"}, "invalid-saliency", "saliency", "another architecture"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_before_there_is_a_job(client, refused, data_dir, request_, kind, field, says):
    body = {name: value for name, value in (REQUEST | request_).items() if value is not None}
    problem = refused("POST", "/v1/jobs", 422, kind, field=field, says=(says,), json=body)
    assert str(data_dir) not in problem["detail"]
    assert client.get("/v1/jobs").json() == {"jobs": [], "next": None}


def test_a_job_names_files_of_the_library_alone(client, data_dir):
    request = start(client, model="rebased", saliency="digits", data="pets", minimum={"mlp_dim": 16})["request"]
    job = CompressJob.of(request, Library(data_dir), Path("jobs/x"))
    assert (job.request.model, job.request.saliency, job.request.data) == (
        "models/rebased.safetensors",
        "saliencies/digits.safetensors",
        "datasets/pets",
    )
    assert job.request.constraints.to_dict()["minimum"] == {"mlp_dim": 16}


@pytest.mark.parametrize("id", ["x", "0" * 32, "0" * 31 + "G", "\N{SNOWMAN}"])
@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/cancel"), ("GET", "/files/model.py")])
def test_an_unknown_job_is_not_found(client, method, path, id):
    answer = client.request(method, f"/v1/jobs/{id}{path}")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")
    assert "there is no job" in answer.json()["detail"]


def test_a_job_that_waits_can_be_cancelled_and_stays_so(client):
    id = start(client)["id"]
    for _ in range(2):
        job = client.post(f"/v1/jobs/{id}/cancel").json()
        assert job["state"] == "cancelled"
        assert job["finished_at"] is not None


def test_progress_is_kept_with_the_job(client, jobs):
    id = start(client)["id"]
    jobs.note(id, Progress("refit", 2, 9))
    assert client.get("/v1/jobs").json()["jobs"][0]["progress"] == {"stage": "refit", "done": 2, "total": 9}
    assert not jobs.is_cancelled(id)
    assert jobs.any_left()
    jobs.cancel(id)
    assert jobs.is_cancelled(id)
    assert not jobs.any_left()


def test_a_database_that_is_none_makes_the_service_not_ready_and_nothing_worse(client, refused, data_dir):
    (data_dir / "jobs.sqlite").write_bytes(b"something else " * 100)
    refused("GET", "/v1/jobs", 503, "not-ready", says=("jobs.sqlite", "not a database"))
    refused("POST", "/v1/jobs", 503, "not-ready", json=REQUEST)
    assert client.get("/health/ready").status_code == 200


def test_ids_sort_in_the_order_of_their_jobs(tmp_path):
    jobs = Jobs(tmp_path)
    ids = []
    for _ in range(3):
        ids.append(jobs.submit("compress", {}).id)
        time.sleep(0.002)
    assert ids == sorted(ids)
    with pytest.raises(NoSuchJobError):
        jobs.get("f" * 32)


def test_what_the_interface_lists_is_what_there_is():
    assert set(Criterion.__args__) == set(CRITERIA)
    assert set(Labels.__args__) == {"model", "data"}
    assert set(REQUESTS) == set(KINDS) == set(JobKind.__args__) == set(CHECKS) == set(RESULTS)
    assert set(RecipeName.__args__) == set(RECIPES)
    assert set(Method.__args__) == set(METHODS)
    assert CompressJobRequest.model_fields["ridge"].default == RIDGE
    assert BUILT_IN.keys() == LOADABLE.keys()
    for name, geometry in BUILT_IN.items():
        data = load_dataset(name)
        assert geometry == (data.num_classes, data.in_chans, data.image_size)
