"""Who may ask what: keys, scopes, hosts, limits, headers, the audit, and secrets that stay secret."""

import logging
import os
import subprocess
import sys
import time

import httpx
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.audit import Audit
from api.db import Database, normal_url
from api.guard import ASKING, Limits, keys_required
from api.keys import REMEMBERED_SECONDS, KeyRefusedError, Keys
from api.network import free_port
from api.settings import Settings, SettingsError
from tests.api.factories import fill
from vit.errors import UnknownNameError

ESTIMATE = {"targets": ["macs"], "architectures": [{"preset": "deit-t"}]}


@pytest.fixture
def keys(database_url):
    database = Database(normal_url(database_url))
    clock = [1_000_000.0]
    made = Keys(lambda: database, lambda: clock[0])
    made.now = clock
    yield made
    database.close()


def test_a_key_is_taken_until_it_expires_or_is_revoked(keys):
    key, text = keys.create("alice", "write", days=1)
    assert text.startswith(key.prefix)
    assert keys.check(text).id == key.id
    keys.now[0] += 86_400
    with pytest.raises(KeyRefusedError, match="expired"):
        keys.check(text)
    other, text = keys.create("bob", "read")
    keys.check(text)
    assert keys.revoke(other.prefix).revoked_at is not None
    with pytest.raises(KeyRefusedError, match="revoked"):
        keys.check(text)
    with pytest.raises(UnknownNameError):
        keys.revoke("000000000000")
    with pytest.raises(UnknownNameError):
        keys.create("eve", "root")


def test_another_process_learns_of_a_revocation_within_seconds(keys):
    key, text = keys.create("alice", "read")
    other = Keys(keys._database, lambda: keys.now[0])
    other.check(text)
    keys.revoke(key.id)
    other.check(text)
    keys.now[0] += REMEMBERED_SECONDS
    with pytest.raises(KeyRefusedError, match="revoked"):
        other.check(text)


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1] + ("A" if t[-1] != "A" else "B"), lambda t: t + "x", lambda _: "", lambda _: "vf_0_0"]
)
def test_what_is_no_key_is_refused(keys, change):
    _, text = keys.create("alice", "admin")
    with pytest.raises(KeyRefusedError) as refused:
        keys.check(change(text))
    assert refused.value.status == 401
    assert text[20:] not in str(refused.value)


def test_neither_the_database_nor_a_listing_holds_a_secret(keys):
    import sqlalchemy as sa

    from api.db_keys import api_keys

    _, text = keys.create("alice", "read")
    secret = text.rpartition("_")[2]
    with keys._database().reading() as connection:
        stored = str(connection.execute(sa.select(api_keys)).all())
    assert secret not in stored
    assert secret not in str([one.to_dict() for one in keys.all()])


@pytest.fixture
def guarded(tmp_path):
    app = create_app(Settings(data_dir=fill(tmp_path / "library"), worker=False, host="0.0.0.0"))
    with TestClient(app, raise_server_exceptions=False) as client:

        def headers(scope):
            return {"authorization": f"Bearer {app.state.keys.create('test', scope)[1]}"}

        yield client, headers


def test_beyond_this_machine_everything_but_health_and_pages_wants_a_key(guarded):
    client, headers = guarded
    for path in ("/v1/presets", "/v1/jobs", "/openapi.json", "/metrics"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthorized"), path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get(path, headers=headers("read")).status_code == 200
    for path in ("/health/live", "/health/ready", "/"):
        assert client.get(path).status_code == 200


def test_scopes_are_what_they_say(guarded):
    client, headers = guarded
    read, write, admin = (headers(scope) for scope in ("read", "write", "admin"))
    assert client.post("/v1/latency/estimate", json=ESTIMATE, headers=read).status_code == 200
    job = {"kind": "export", "model": "none", "format": "onnx"}
    refused = client.post("/v1/jobs", json=job, headers=read)
    assert (refused.status_code, refused.json()["type"]) == (403, "/problems/forbidden")
    assert client.post("/v1/jobs", json=job, headers=write).status_code == 422
    assert client.get("/v1/audit", headers=write).status_code == 403
    assert client.get("/v1/audit", headers=admin).status_code == 200


def test_paths_that_only_ask_are_there_and_everything_else_that_changes_wants_write(guarded):
    client, headers = guarded
    paths = client.get("/openapi.json", headers=headers("read")).json()["paths"]
    assert set(ASKING) <= set(paths)
    read = headers("read")
    for path, operations in paths.items():
        for method in operations:
            if path.startswith("/v1/") and method != "get" and path not in ASKING:
                answer = client.request(method, path.replace("{", "").replace("}", ""), headers=read)
                assert answer.status_code == 403, (method, path)


def test_changes_and_refusals_are_in_the_audit(guarded):
    client, headers = guarded
    admin = headers("admin")
    client.get("/v1/presets")
    answer = client.post("/v1/jobs", json={"kind": "none"}, headers=headers("write"))
    client.post("/v1/latency/estimate", json=ESTIMATE, headers=headers("read"))
    deadline = time.monotonic() + 30
    while len(events := client.get("/v1/audit", headers=admin).json()["events"]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    job, refusal = events
    assert (job["path"], job["status"], job["request"]) == ("/v1/jobs", 422, answer.headers["x-request-id"])
    assert job["key"] is not None
    assert (refusal["path"], refusal["status"], refusal["key"]) == ("/v1/presets", 401, None)
    page = client.get("/v1/audit", params={"limit": 1}, headers=admin).json()
    assert page["events"] == [job]
    assert client.get("/v1/audit", params={"limit": 1, "before": page["next"]}, headers=admin).json()["events"] == [
        refusal
    ]


def test_an_audit_without_a_database_is_logged(caplog):
    from api.catalogue_values import DatabaseError

    def gone():
        raise DatabaseError("gone")

    audit = Audit(gone)
    with caplog.at_level(logging.WARNING):
        audit.note(None, "1.2.3.4", "POST", "/v1/jobs", 202, "r1")
        audit.close()
    assert "gone" in caplog.text
    assert "1.2.3.4" in caplog.text


def test_a_service_for_everybody_without_keys_has_to_be_asked_for_twice(tmp_path):
    with pytest.raises(SettingsError, match="VITFIT_INSECURE=1"):
        keys_required(Settings(data_dir=tmp_path, host="0.0.0.0", auth="off"))
    assert not keys_required(Settings(data_dir=tmp_path, host="0.0.0.0", auth="off", insecure=True))
    assert keys_required(Settings(data_dir=tmp_path, host="0.0.0.0"))
    assert not keys_required(Settings(data_dir=tmp_path))
    assert keys_required(Settings(data_dir=tmp_path, auth="on"))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("evil.example.com", 403),
        ("10.0.0.7:8000", 403),
        ("evil.example.com:80", 403),
    ],
)
def test_on_this_machine_only_its_own_names_are_answered(client, host, status):
    answer = client.get("/v1/presets", headers={"host": host})
    assert answer.status_code == status
    assert answer.headers["x-request-id"]


def test_a_caller_who_asks_too_often_is_told_when_to_come_again():
    now = [0.0]
    limits = Limits(rate=2.0, burst=3.0, most=0, clock=lambda: now[0])
    assert [limits.enter("a") for _ in range(3)] == [0.0] * 3
    wait = limits.enter("a")
    assert wait == pytest.approx(0.5)
    assert limits.enter("b") == 0.0
    now[0] += wait
    assert limits.enter("a") == 0.0
    assert limits.enter("a") > 0


def test_only_so_many_requests_of_one_caller_are_under_way():
    limits = Limits(rate=0.0, burst=1.0, most=2)
    assert [limits.enter("a"), limits.enter("a")] == [0.0, 0.0]
    assert limits.enter("a") == 1.0
    limits.leave("a")
    assert limits.enter("a") == 0.0


def test_over_http_the_limit_is_a_problem_with_retry_after(tmp_path):
    app = create_app(Settings(data_dir=tmp_path, worker=False, auth="on", max_rate=0.001, max_burst=2))
    with TestClient(app) as client:
        key = {"authorization": f"Bearer {app.state.keys.create('x', 'read')[1]}"}
        statuses = [client.get("/v1/presets", headers=key).status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        assert int(client.get("/v1/presets", headers=key).headers["retry-after"]) >= 1


def test_every_answer_has_its_security_headers(client):
    for path in ("/v1/presets", "/", "/nothing", "/openapi.json"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert headers["referrer-policy"] == "same-origin", path
    assert client.get("/v1/presets").headers["cache-control"] == "no-store"
    policy = client.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_metrics_count_by_route_and_not_by_id(client):
    client.post("/v1/latency/estimate", json=ESTIMATE)
    for name in ("a", "b"):
        client.get(f"/v1/models/{name}")
    text = client.get("/metrics").text
    assert 'vitfit_requests_total{method="GET",route="/v1/models/{name}",status="404"} 2.0' in text
    assert 'vitfit_queries_total{kind="estimate"} 1.0' in text
    assert "vitfit_table_age_seconds{" in text
    assert "vitfit_database_up 1.0" in text


@pytest.mark.slow
def test_no_secret_is_in_the_log_of_a_service(tmp_path, run_cli, monkeypatch):
    monkeypatch.setenv("VITFIT_DATA_DIR", str(tmp_path))
    status, key, _ = run_cli("keys", "create", "me", "--scope", "write")
    assert status == 0
    import httpx

    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "api.cli", "serve", "--port", str(port), "--data-dir", str(tmp_path)]
    with log.open("wb") as output:
        environment = os.environ | {"VITFIT_AUTH": "on"}
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        headers = {"authorization": f"Bearer {key.strip()}"}
        assert httpx.get(f"http://127.0.0.1:{port}/v1/presets", headers=headers).status_code == 200
        assert (
            httpx.get(
                f"http://127.0.0.1:{port}/v1/presets", headers={"authorization": "Bearer wrong-secret"}
            ).status_code
            == 401
        )
        assert httpx.post(f"http://127.0.0.1:{port}/v1/jobs", json={}, headers=headers).status_code == 422
    finally:
        process.terminate()
        process.wait(timeout=30)
    text = log.read_text()
    assert key.strip().rpartition("_")[2] not in text
    assert "wrong-secret" not in text
    listed = run_cli("keys", "list", "--json")[1]
    assert key.strip().rpartition("_")[2] not in listed
    assert '"used_at": 1' in listed


@pytest.fixture
def served(tmp_path):
    """Starts uvicorn with options of its own; gives the port."""
    processes = []

    def start(*arguments, **environment):
        port = free_port()
        env = {**os.environ, "VITFIT_DATA_DIR": str(tmp_path / "library"), "VITFIT_WORKER": "false", **environment}
        command = [sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app", "--port", str(port), *arguments]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
        for _ in range(300):
            try:
                httpx.get(f"http://127.0.0.1:{port}/health/live")
                return port
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError("the service did not start")

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_proxys_prefix_is_no_way_around_keys(served):
    port = served("--root-path", "/vitfit", VITFIT_AUTH="on")
    for path in ("/v1/targets", "/v1/audit", "/metrics", "/openapi.json"):
        assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 401, path


@pytest.mark.parametrize("server", ["192.0.2.2", "2001:db8::2"])
def test_a_socket_that_others_reach_wants_keys_whatever_the_settings_say(data_dir, server):
    app = create_app(Settings(data_dir=data_dir, worker=False))

    async def elsewhere(scope, receive, send):
        await app({**scope, "server": (server, 8000)}, receive, send)

    client = TestClient(elsewhere, headers={"host": "localhost"})
    assert client.get("/v1/targets").status_code == 401


def test_wrong_keys_are_held_to_a_rate(data_dir):
    app = create_app(Settings(data_dir=data_dir, worker=False, auth="on", max_rate=0.001, max_burst=3))
    wrong = {"authorization": f"Bearer vf_0123456789ab_{'A' * 43}"}
    with TestClient(app, headers=wrong) as client:
        assert [client.get("/v1/targets").status_code for _ in range(5)] == [401, 401, 401, 429, 429]


def test_pages_of_other_sites_change_nothing_on_this_machine(client):
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "http://["}):
        assert client.post(f"/v1/jobs/{'0' * 32}/cancel", headers=headers).json()["type"] == "/problems/wrong-host"
    assert client.post(f"/v1/jobs/{'0' * 32}/cancel", headers={"origin": str(client.base_url)}).status_code == 404


def test_answers_to_our_own_bugs_have_security_headers(app):
    app.add_api_route("/bug", lambda: 1 / 0)
    headers = TestClient(app, raise_server_exceptions=False).get("/bug").headers
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")


def test_a_path_with_nul_costs_no_event(database_url):
    database = Database(normal_url(database_url))
    audit = Audit(lambda: database)
    audit.note(None, "10.0.0.7", "GET", "/v1/x\0", 401, "r1")
    audit.close()
    assert [event["path"] for event in audit.newest(10)] == ["/v1/x?"]
    database.close()


def test_the_repr_of_settings_has_no_password():
    assert "hunter2" not in repr(
        Settings(database_url="postgresql://me:hunter2@host/name", blob_url="s3://k:hunter2@b")
    )
