"""Commands with --server print what they print without, and ask nothing of this machine's library."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.settings import Settings
from tests.api.factories import DIGITS, TINY_TARGET, save_model

EXPORT = {"kind": "export", "model": "digits", "format": "onnx"}


@pytest.fixture
def app(data_dir: Path) -> FastAPI:
    save_model(DIGITS, data_dir / "models" / "digits.safetensors")
    return create_app(Settings(data_dir=data_dir, shipped_tables=False, worker=False))


@pytest.fixture
def server(app: FastAPI) -> Iterator[str]:
    """Address of the service, on a port that the operating system chose."""
    running = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(30)


SAME = [
    ("search", "-s", "tiny", "-t", TINY_TARGET.slug, "--speedup", "1.2"),
    ("search", "-s", "tiny", "-t", TINY_TARGET.slug, "--speedup", "1.2", "--multiple", "mlp_dim=2", "--protect", "0"),
    ("search", "-s", "tiny", "-t", "macs=0.05", "-t", f"{TINY_TARGET.slug}=2.5"),
    ("redistribute", "--embed-dim", "384"),
    ("redistribute", "-t", "macs", "--budget-ms", "3000"),
    ("catalogue", "list", "--limit", "5"),
    ("catalogue", "list", "-t", "macs", "--budget-ms", "3000", "--kind", "published"),
    ("catalogue", "pareto", "-t", "macs", "-d", "imagenet-1k"),
    ("catalogue", "compare", "deit-s", "revit-s", "-t", "macs"),
    ("catalogue", "search", "-t", "macs", "--budget-ms", "3000", "-d", "imagenet-1k"),
    ("estimate", "deit-s", "revit-t", "-t", "macs"),
    ("estimate", "deit-s", "revit-t", "-t", "macs", "--components"),
    ("jobs", "list"),
]


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
@pytest.mark.parametrize("command", SAME, ids=lambda command: " ".join(command[:2]))
def test_the_answer_is_the_same_from_a_service(run_cli, monkeypatch, data_dir, server, command, as_json):
    more = ["--json"] if as_json else []
    asked = run_cli(*command, *more, "--server", server)
    monkeypatch.setenv("VITFIT_DATA_DIR", str(data_dir))
    monkeypatch.setenv("VITFIT_SHIPPED_TABLES", "0")
    here = run_cli(*command, *more)
    assert (asked[0], here[0]) == (0, 0), asked[2] + here[2]
    if not as_json:
        assert asked[1] == here[1]
        return
    there, local = json.loads(asked[1]), json.loads(here[1])
    if command[0] == "estimate":  # what a removed unit would save is not in the service's answer
        assert all(document.pop("saving_ms") for document in local)
    if command[:2] == ("catalogue", "search"):  # null where this machine leaves a field out
        there = [{name: value for name, value in one.items() if value is not None} for one in there]
        local = [{name: value for name, value in one.items() if value is not None} for one in local]
    assert there == local


def test_the_server_may_be_in_the_environment(run_cli, monkeypatch, server):
    monkeypatch.setenv("VITFIT_SERVER", server)
    status, out, err = run_cli("targets", "--json")
    assert status == 0, err
    assert TINY_TARGET.slug in {one["target"] for one in json.loads(out)}


def test_targets_of_a_service_are_listed(run_cli, server):
    status, out, err = run_cli("targets", "--server", server)
    assert status == 0, err
    assert TINY_TARGET.slug in out


def test_a_refusal_of_the_service_is_one_line(run_cli, server):
    status, out, err = run_cli("estimate", "deit-s", "-t", "nope", "--server", server)
    assert (status, out) == (1, "")
    assert err.startswith("error: targets[0]: unknown target 'nope'")
    assert "GET /v1/targets lists the targets" in err


def test_a_service_that_is_not_there_is_told_within_seconds(run_cli):
    start = time.monotonic()
    status, _, err = run_cli("targets", "--server", "http://127.0.0.1:9")
    assert status == 1
    assert "does not answer" in err
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "command",
    [
        ("estimate", "deit-s", "-t", "macs", "--extrapolate"),
        ("search", "-s", "tiny", "-t", "macs", "--speedup", "2", "--remember", "x"),
        ("redistribute", "--embed-dim", "384", "--remember", "x"),
        ("redistribute", "deit-s", "-t", "macs", "-t", "other"),
    ],
)
def test_what_a_service_cannot_do_is_wrong_usage(run_cli, command):
    assert run_cli(*command, "--server", "http://127.0.0.1:9")[0] == 2


def test_the_architecture_that_a_service_found_is_written(run_cli, server, tmp_path):
    path = tmp_path / "revit.json"
    assert run_cli("redistribute", "--embed-dim", "384", "-o", path, "--server", server)[0] == 0
    status, out, _ = run_cli("estimate", path, "-t", "macs", "--json")
    assert status == 0
    assert json.loads(out)[0]["latency_ms"] > 0


def test_an_architecture_is_redistributed_by_a_service(run_cli, server):
    command = ("redistribute", "deit-s", "-t", "macs", "--server", server)
    status, out, err = run_cli(*command)
    assert status == 0, err
    assert "before EMB 384" in out
    document = json.loads(run_cli(*command, "--json")[1])
    assert document["latency_ms"] <= document["before_ms"]


def test_jobs_of_a_service_are_listed_shown_cancelled_and_retried(run_cli, server, app):
    from api.client import Client

    with Client(server) as client:
        job = client.start_job(EXPORT)
    assert [one["id"] for one in json.loads(run_cli("jobs", "list", "--server", server, "--json")[1])] == [job.id]
    status, out, err = run_cli("jobs", "show", job.id[:8], "--server", server)
    assert status == 0, err
    assert out.startswith(f"{job.id}: export, queued")
    assert "model: digits" in out
    assert run_cli("jobs", "cancel", job.id, "--server", server)[1].strip() == f"{job.id}: cancelled"
    status, out, err = run_cli("jobs", "follow", job.id, "--server", server)
    assert (status, out.strip()) == (1, "cancelled"), err
    status, out, err = run_cli("jobs", "retry", job.id, "--server", server, "--json")
    assert status == 0, err
    assert json.loads(out)["retry_of"] == job.id
    status, _, err = run_cli("jobs", "show", "0" * 32, "--server", server)
    assert status == 1
    assert "error:" in err
