"""Idempotency keys, pages and filters, retry, delete, log and events: what the service says of jobs nobody does."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.errors import TooManyStreamsError
from api.event_hub import EventHub
from api.job_events import MOST, Events, log_text
from api.job_stream import stream
from api.jobs import Jobs, Progress
from api.settings import Settings
from tests.api.factories import DIGITS, save_model

EXPORT = {"kind": "export", "model": "digits"}


@pytest.fixture
def app(data_dir: Path, database_url: str) -> Iterator[FastAPI]:
    save_model(DIGITS, data_dir / "models" / "digits.safetensors")
    url = "" if database_url.startswith("sqlite") else database_url
    found = create_app(Settings(data_dir=data_dir, shipped_tables=False, worker=False, database_url=url))
    yield found
    found.state.jobs.close()


@pytest.fixture
def jobs(app: FastAPI) -> Jobs:
    found: Jobs = app.state.jobs
    return found


def start(client: TestClient, body: dict[str, Any] | None = None, key: str | None = None) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json=body or EXPORT, headers={} if key is None else {"Idempotency-Key": key})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_key_makes_one_job_of_one_request_however_often_it_is_sent(client, refused):
    first = start(client, key="mine")
    assert start(client, key="mine")["id"] == first["id"]
    assert start(client, key="another")["id"] != first["id"]
    assert start(client)["id"] != first["id"]
    assert len(client.get("/v1/jobs").json()["jobs"]) == 3
    refused(
        "POST", "/v1/jobs", 409, "idempotency-key-reused", says=(first["id"], "same body"),
        json=EXPORT | {"format": "torch"}, headers={"Idempotency-Key": "mine"},
    )  # fmt: skip


def test_a_key_gives_its_job_also_where_the_same_request_would_be_refused_by_now(client, data_dir):
    first = start(client, key="k")
    (data_dir / "models" / "digits.safetensors").unlink()
    assert start(client, key="k")["id"] == first["id"]


def test_of_many_at_once_with_one_key_comes_one_job(jobs):
    found = []

    def submit() -> None:
        found.append(jobs.submit("export", EXPORT, key="k").id)

    threads = [threading.Thread(target=submit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert len(jobs.newest(10)) == 1


def test_keys_are_forgotten_when_their_time_is_over(jobs):
    first = jobs.submit("export", EXPORT, key="k", remember=1.0)
    assert jobs.submit("export", EXPORT, key="k", remember=1.0).id == first.id
    assert jobs.submit("export", EXPORT, key="k", remember=-1.0).id != first.id


@pytest.mark.parametrize("key", ["", "two words", "x" * 201])
def test_a_key_that_is_none_is_refused(refused, key):
    headers = {"Idempotency-Key": key}
    refused("POST", "/v1/jobs", 422, "invalid-request", field="idempotency-key", json=EXPORT, headers=headers)


def test_pages_have_every_job_once_the_newest_first_whatever_comes_meanwhile(client):
    ids = [start(client)["id"] for _ in range(5)]
    found, cursor = [], ""
    while cursor is not None:
        page = client.get(f"/v1/jobs?limit=2{cursor and '&cursor=' + cursor}").json()
        found += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
        start(client)
    assert found == ids[::-1]


def test_jobs_are_listed_by_state_kind_and_time(client, refused):
    first = start(client)["id"]
    second = start(client, {"kind": "saliency", "model": "digits", "data": "digits"})["id"]
    client.post(f"/v1/jobs/{first}/cancel")

    def ids(query: str) -> list[str]:
        return [job["id"] for job in client.get(f"/v1/jobs?{query}").json()["jobs"]]

    assert ids("state=cancelled") == [first]
    assert ids("state=queued&state=running") == [second]
    assert ids("kind=export") == [first]
    assert ids("kind=export&state=queued") == []
    later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    assert client.get("/v1/jobs", params={"since": later}).json()["jobs"] == []
    earlier = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    assert len(client.get("/v1/jobs", params={"since": earlier}).json()["jobs"]) == 2
    for since in ("0", "0.0", "-1e9", "1760000000", "yesterday"):
        refused("GET", f"/v1/jobs?since={since}", 422, "invalid-request", field="since")
    for query, field in (("state=lost", "state[0]"), ("kind=bake", "kind[0]"), ("cursor=1", "cursor")):
        refused("GET", f"/v1/jobs?{query}", 422, "invalid-request", field=field)


def test_a_cancelled_job_can_be_tried_again_and_one_that_waits_cannot(client, refused):
    first = start(client)
    refused("POST", f"/v1/jobs/{first['id']}/retry", 409, "job-state", says=("is queued",))
    client.post(f"/v1/jobs/{first['id']}/cancel")
    answer = client.post(f"/v1/jobs/{first['id']}/retry")
    again = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{again['id']}"
    assert (again["state"], again["retry_of"], again["request"]) == ("queued", first["id"], first["request"])
    assert again["id"] > first["id"]


def test_a_finished_job_can_be_deleted_and_nothing_of_it_stays(client, jobs, refused, data_dir):
    id = start(client, key="k")["id"]
    refused("DELETE", f"/v1/jobs/{id}", 409, "job-state", says=("cancel it first",))
    client.post(f"/v1/jobs/{id}/cancel")
    Events(jobs.ours()).add(id, "log", {"text": "something"})
    (data_dir / "jobs" / id).mkdir(parents=True)
    assert client.delete(f"/v1/jobs/{id}").status_code == 204
    refused("GET", f"/v1/jobs/{id}", 404, "not-found")
    refused("DELETE", f"/v1/jobs/{id}", 404, "not-found")
    assert Events(jobs.ours()).of(id) == []
    assert not (data_dir / "jobs" / id).exists()
    assert start(client, key="k")["id"] != id


def test_the_log_is_text(client, jobs):
    id = start(client)["id"]
    events = Events(jobs.ours())
    events.add(id, "step", {"step": "export", "state": "started"})
    events.add(id, "log", {"text": "half of it"})
    answer = client.get(f"/v1/jobs/{id}/log")
    assert answer.headers["content-type"].startswith("text/plain")
    assert [line.split(" ", 1)[1] for line in answer.text.splitlines()] == ["step export started", "half of it"]
    assert log_text(events.of(id)) == answer.text


def test_events_have_numbers_without_a_gap_whoever_writes(jobs):
    events = Events(jobs.ours())

    def write() -> None:
        for _ in range(5):
            events.add("a" * 32, "log", {"text": "x"})

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.seq for event in events.of("a" * 32)] == list(range(1, 21))


def test_a_job_has_only_so_many_events(jobs, monkeypatch):
    monkeypatch.setattr("api.job_events.MOST", 3)
    events = Events(jobs.ours())
    for _ in range(6):
        events.add("a" * 32, "log", {"text": "x"})
    found = events.of("a" * 32)
    assert [event.seq for event in found] == [1, 2, 3]
    assert "left out" in found[-1].data["text"]
    assert MOST > 100


# --- the stream --------------------------------------------------------------------------------------------------


def parts(text: str) -> list[dict[str, str]]:
    """Server-sent events of a text, by field."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith((":", "retry"))]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


def test_a_stream_has_what_happened_and_ends_with_the_job(client, jobs):
    id = start(client)["id"]
    events = Events(jobs.ours())
    events.add(id, "step", {"step": "export", "state": "started"})
    jobs.note(id, Progress("export", 1, 2))
    jobs.cancel(id)
    answer = client.get(f"/v1/jobs/{id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = parts(answer.text)
    assert [(one["event"], one.get("id")) for one in found] == [("step", "1"), ("progress", None), ("end", "end")]
    assert json.loads(found[0]["data"])["step"] == "export"
    assert json.loads(found[1]["data"]) == {"stage": "export", "done": 1, "total": 2}
    assert json.loads(found[2]["data"]) == {"state": "cancelled"}

    rest = client.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": "1"})
    assert [one["event"] for one in parts(rest.text)] == ["progress", "end"]
    assert client.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": "end"}).status_code == 204


def test_a_stream_of_no_job_or_from_nowhere_is_refused(client, refused):
    refused("GET", f"/v1/jobs/{'0' * 32}/events", 404, "not-found")
    id = start(client)["id"]
    refused(
        "GET", f"/v1/jobs/{id}/events", 422, "invalid-request", field="last-event-id", headers={"Last-Event-ID": "x"}
    )  # fmt: skip


def test_a_stream_goes_on_after_a_restart_of_the_service(client, jobs, app):
    id = start(client)["id"]
    events = Events(jobs.ours())
    for text in ("one", "two"):
        events.add(id, "log", {"text": text})
    jobs.cancel(id)
    seen = parts(client.get(f"/v1/jobs/{id}/events").text)[0]["id"]
    with TestClient(create_app(app.state.settings)) as other:
        rest = parts(other.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": seen}).text)
    assert [json.loads(one["data"]).get("text") for one in rest] == ["two", None]


def test_what_happens_arrives_while_a_stream_is_open_and_silence_is_commented(jobs):
    id, events, said = jobs.submit("export", EXPORT).id, Events(jobs.ours()), []

    async def follow() -> None:
        hub = EventHub(jobs, most=1)
        ticks = iter(range(0, 10_000, 100))
        async for text in stream(hub, id, 0, keep=50.0, clock=lambda: float(next(ticks))):
            said.append(text)
            if len(said) == 2:
                await asyncio.to_thread(events.add, id, "log", {"text": "now"})
            if "now" in text:
                await asyncio.to_thread(jobs.cancel, id)
        assert hub._listeners == set()
        await hub.close()

    asyncio.run(asyncio.wait_for(follow(), 30))
    assert any("still here" in text for text in said)
    assert "now" in "".join(said)
    assert "end" in said[-1]


def test_a_client_that_goes_away_frees_its_place_and_too_many_are_refused(jobs):
    id = jobs.submit("export", EXPORT).id

    async def follow() -> None:
        hub = EventHub(jobs, most=1)
        listening = hub.follow(id, 0)
        task = asyncio.ensure_future(anext(listening))
        await task
        with pytest.raises(TooManyStreamsError, match="1 streams of events are open"):
            hub.check_room()
        await listening.aclose()
        hub.check_room()
        await hub.close()

    asyncio.run(asyncio.wait_for(follow(), 30))


def test_streams_end_with_the_service_and_their_job_goes_on(jobs):
    id = jobs.submit("export", EXPORT).id

    async def follow() -> list[str]:
        hub, said = EventHub(jobs, most=1), []
        async for text in stream(hub, id, 0):
            said.append(text)
            hub.end()
        return said

    assert "event: end" not in "".join(asyncio.run(asyncio.wait_for(follow(), 30)))


def test_a_stream_waits_for_a_database_that_is_away(jobs, monkeypatch):
    from api.jobs import JobsUnavailableError

    id = jobs.submit("export", EXPORT).id
    jobs.cancel(id)
    whole, tries = EventHub._look, []

    def look(self: EventHub, least: dict[str, int]) -> Any:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise JobsUnavailableError("away")
        return whole(self, least)

    monkeypatch.setattr(EventHub, "_look", look)

    async def follow() -> list[str]:
        hub = EventHub(jobs, most=1)
        return [text async for text in stream(hub, id, 0)]

    assert "end" in asyncio.run(asyncio.wait_for(follow(), 30))[-1]
    assert len(tries) == 3


def test_studies_are_listed_with_their_trials(client, refused, app):
    from api.db import database_url
    from api.study_run import evaluator_of
    from api.study_store import closing_storage, open_studies
    from search.study import run_study
    from search.study_file import parse_study

    assert client.get("/v1/studies").json() == {"studies": []}
    text = (
        "{study: s, make: redistribute, target: macs, objectives: [latency_ms, params], trials: 6, "
        "space: {embed_dim: {from: 104, to: 256, step: 8}}}"
    )
    spec = parse_study(text)
    with closing_storage(open_studies(database_url(app.state.settings))) as storage:
        for _ in run_study(spec, storage, evaluator_of(spec, app.state.library)):
            pass
    (listed,) = client.get("/v1/studies").json()["studies"]
    found = client.get("/v1/studies/s").json()
    assert found == listed
    assert (found["study"], found["states"]["complete"]) == ("s", 6)
    assert found["best"]
    first = client.get("/v1/studies/s/trials?limit=4").json()
    rest = client.get(f"/v1/studies/s/trials?after={first['next']}").json()
    assert [one["number"] for one in (*first["trials"], *rest["trials"])] == list(range(6))
    assert rest["next"] is None
    refused("GET", "/v1/studies/none", 404, "not-found")
    refused("GET", "/v1/studies/none/trials", 404, "not-found")
