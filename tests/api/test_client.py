"""The client against the interface's description and against a real service; and when the way to it breaks."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

import lut_data
from api import examples
from api.app import create_app
from api.catalogue_bodies import BudgetSearchRequest, CompareRequest, FindRequest, ParetoRequest
from api.client import Client
from api.client_errors import ClientError, ServiceError, ServiceUnreachableError, UnexpectedAnswerError
from api.client_events import JobEvent, events_of, lines_of
from api.client_http import Patience
from api.problems import LIMIT, NOT_READY
from api.questions import EstimateRequest, RedistributeRequest, SearchRequest
from api.settings import Settings, SettingsError

Handler = Callable[[httpx.Request], httpx.Response]
JOB = examples.JOB["id"]

TABLE = lut_data.tables()[0]

CALLS: dict[str, dict[str, Any]] = {
    "live": {},
    "ready": {},
    "metrics": {},
    "openapi": {},
    "targets": {},
    "target": {"slug": "macs"},
    "presets": {},
    "saliencies": {},
    "estimate": {"body": EstimateRequest.model_validate(examples.ESTIMATE_REQUEST)},
    "search": {"body": SearchRequest.model_validate(examples.SEARCH_REQUEST)},
    "redistribute": {"body": RedistributeRequest.model_validate(examples.REDISTRIBUTE_REQUEST)},
    "find_entries": {"body": FindRequest.model_validate(examples.CATALOGUE_FIND)},
    "pareto_front": {"body": ParetoRequest(target="macs", data="imagenet-1k")},
    "compare": {"body": CompareRequest.model_validate({"a": {"preset": "deit-s"}, "b": {"preset": "revit-s"}})},
    "search_by_budget": {"body": BudgetSearchRequest(target="macs", budget_ms=3000.0)},
    "start_job": {"body": examples.COMPRESS_JOB},
    "jobs": {},
    "job": {"job_id": JOB},
    "cancel_job": {"job_id": JOB},
    "retry_job": {"job_id": JOB},
    "delete_job": {"job_id": JOB},
    "job_log": {"job_id": JOB},
    "follow_job": {"job_id": JOB},
    "download_job_file": {"job_id": JOB, "name": "compressed.onnx"},
    "studies": {},
    "study": {"name": "shapes"},
    "study_trials": {"name": "shapes"},
    "tables": {},
    "table": {"id": "5f70bf18a0860070"},
    "upload_table": {"path": TABLE},
    "validate_table": {"path": TABLE},
    "compare_tables": {"body": {"a": "5f70bf18a0860070", "b": "a1b2c3d4e5f60718"}},
    "download_table": {"id": "5f70bf18a0860070"},
    "delete_table": {"id": "5f70bf18a0860070"},
    "models": {},
    "model": {"name": "mine"},
    "upload_model": {"path": TABLE, "name": "mine"},
    "download_model": {"name": "mine"},
    "delete_model": {"name": "mine"},
    "saliency": {"name": "mine"},
    "upload_saliency": {"path": TABLE, "name": "mine"},
    "download_saliency": {"name": "mine"},
    "delete_saliency": {"name": "mine"},
    "frontier": {"body": {"saliency": "mine", "target": "macs"}},
    "staircase": {"body": {"saliency": "mine", "target": "macs"}},
    "code_of": {"body": examples.ARCHITECTURE},
    "architecture": {"id": "deit-s"},
    "architecture_json": {"id": "deit-s"},
    "architecture_code": {"id": "deit-s"},
    "download_onnx": {"id": "deit-s"},
    "audit": {},
}
"""Every method of the client, with arguments that the documentation's examples have."""

UNDOCUMENTED = {("get", "/openapi.json"), ("get", "/metrics")}
"""Routes for programs that are not in the document."""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("library"), worker=False))
    return json.loads(json.dumps(app.openapi()))


def operation_of(document: dict[str, Any], request: httpx.Request) -> tuple[str, dict[str, Any]] | None:
    """The operation that a request is for. A path without parameters goes before one with."""
    for path, methods in sorted(document["paths"].items(), key=lambda item: item[0].count("{")):
        pattern = re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path))
        if re.fullmatch(pattern, request.url.path) and request.method.lower() in methods:
            return path, methods[request.method.lower()]
    return None


def without_names(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def example_of(document: dict[str, Any], operation: dict[str, Any]) -> httpx.Response:
    """The answer that the documentation shows first."""
    status = min(status for status in operation["responses"] if status.startswith("2"))
    content = operation["responses"][status].get("content", {})
    if not content:
        return httpx.Response(int(status))
    media_type, shown = next(iter(content.items()))
    named = [one["value"] for one in shown.get("examples", {}).values()]
    reference = shown["schema"].get("$ref", "").rpartition("/")[2]
    value = (named or document["components"]["schemas"].get(reference, {}).get("examples"))[0]
    text = value if isinstance(value, str) else json.dumps(value)
    return httpx.Response(int(status), text=text, headers={"content-type": media_type})


def call(client: Client, name: str, arguments: dict[str, Any], tmp_path) -> object:
    method = getattr(client, name)
    if "to" in inspect.signature(method).parameters:
        arguments = arguments | {"to": tmp_path / "file"}
    result = method(**arguments)
    return list(result) if isinstance(result, Iterator) else result


def public_methods() -> set[str]:
    return {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}


def test_every_method_is_in_the_table_of_calls():
    assert set(CALLS) == public_methods() - {"close"}


def test_the_client_has_a_method_for_every_route_and_reads_the_answer_that_is_documented(document, tmp_path):
    asked, refusals, endless = set(), [], []

    def answer(request: httpx.Request) -> httpx.Response:
        found = operation_of(document, request)
        if found is None:
            path = request.url.path.replace(JOB, "{}").replace("shapes", "{}")
            asked.add((request.method.lower(), path))
            return httpx.Response(404, json=NOT_READY.document("not here", request.url.path))
        path, operation = found
        asked.add((request.method.lower(), without_names(path)))
        allowed = {parameter["name"].lower() for parameter in operation.get("parameters", ())}
        known = (
            {"cursor", "state", "kind", "since"} if path == "/v1/jobs" else set()
        )  # comes with pages and filters of jobs
        assert set(request.url.params) <= allowed | known, path
        return example_of(document, operation)

    patience = Patience(retries=1, sleep=lambda seconds: None)
    with Client("http://service", patience=patience, transport=httpx.MockTransport(answer)) as client:
        for name, arguments in CALLS.items():
            before = len(asked)
            try:
                call(client, name, arguments, tmp_path)
            except ServiceError as error:
                refusals.append(error.problem.detail)
            except ServiceUnreachableError:
                endless.append(name)
            assert len(asked) == before + 1, f"{name} asks for a route that another method has"

    there = {(method, without_names(path)) for path, methods in document["paths"].items() for method in methods}
    assert there - asked == set(), "routes without a method"
    assert asked - there == UNDOCUMENTED
    assert set(refusals) == {"not here"}
    assert endless == ["follow_job"], "the stream that is shown has no end"


# Over a real service


@pytest.fixture
def asked(app) -> Iterator[Client]:
    """The client of a service in this process, through the service's whole stack."""
    from starlette.testclient import TestClient

    with TestClient(app) as inner:

        def answer(request: httpx.Request) -> httpx.Response:
            sent = inner.request(
                request.method,
                str(request.url.raw_path, "ascii"),
                content=request.read(),
                headers=dict(request.headers),
            )
            return httpx.Response(sent.status_code, content=sent.content, headers=dict(sent.headers))

        with Client("http://testserver", transport=httpx.MockTransport(answer)) as client:
            yield client


def test_answers_are_the_services_bodies(asked):
    assert asked.ready().status == "ok"
    assert {one.target for one in asked.targets().targets} >= {"macs"}
    assert asked.target("macs").unit == "million MACs"
    found = asked.estimate(
        EstimateRequest.model_validate({"targets": ["macs"], "architectures": [{"preset": "deit-s"}]})
    )
    assert found.architectures[0].estimates[0].latency_ms == pytest.approx(found.architectures[0].macs / 1e6)
    assert asked.openapi()["openapi"].startswith("3.1")


def test_a_refusal_carries_the_services_problem(asked):
    with pytest.raises(ServiceError, match=r"unknown target 'nope'") as refused:
        asked.estimate(EstimateRequest.model_validate({"targets": ["nope"], "architectures": [{"preset": "deit-s"}]}))
    assert (refused.value.status, refused.value.kind) == (422, "unknown-name")
    assert refused.value.problem.field == "targets[0]"
    assert refused.value.request_id
    with pytest.raises(ServiceError) as missing:
        asked.target("a/../b")  # one name, whatever is in it
    assert missing.value.problem.instance == "/v1/targets/a/../b"


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_would_lead_elsewhere_is_not_asked_for(asked, name):
    with pytest.raises(ClientError, match="no name"):
        asked.job(name)


# When the way breaks


class Script:
    """Answers in turn; an exception is raised. Keeps the requests and the waits."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.requests, self.waits = list(answers), list[httpx.Request](), list[float]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, key: str | None = None, **patience: Any) -> Client:
        waiting = Patience(sleep=self.waits.append, chance=lambda: 1.0, now=lambda: NOW, **patience)
        return Client("http://service", key, waiting, httpx.MockTransport(self))


NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
HEALTHY = {"status": "ok"}


def ok(document: object = HEALTHY, **more: Any) -> httpx.Response:
    return httpx.Response(200, json=document, **more)


def problem(status: int, **headers: str) -> httpx.Response:
    kind = NOT_READY if status == 503 else LIMIT
    document = kind.document("wait", "/health/live") | {"status": status}
    return httpx.Response(status, json=document, headers={"content-type": "application/problem+json"} | headers)


def test_waits_double_and_are_spread():
    patience = Patience(first_wait=0.5, longest_wait=3.0)
    for attempt, most in enumerate((0.5, 1.0, 2.0, 3.0, 3.0)):
        for chance in (0.0, 0.999):
            wait = Patience(first_wait=0.5, longest_wait=3.0, chance=lambda chance=chance: chance).wait(attempt)
            assert most / 2 <= wait <= most
        assert most / 2 <= patience.wait(attempt) <= most


@pytest.mark.parametrize(
    "failure", [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.ReadTimeout("slow"), problem(503)]
)
def test_a_question_is_asked_again(failure):
    script = Script(failure, ok())
    assert script.client().live().status == "ok"
    assert script.waits == [0.25]


def test_after_the_last_try_the_reason_is_told():
    script = Script(*[httpx.ConnectError("connection refused")] * 3)
    with pytest.raises(ServiceUnreachableError, match=r"http://service does not answer: connection refused; .*serve"):
        script.client(retries=2).live()
    assert len(script.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500])
def test_what_stays_wrong_is_not_asked_again(status):
    script = Script(problem(status))
    with pytest.raises(ServiceError):
        script.client().live()


def test_retry_after_is_honoured_in_seconds_and_as_a_date():
    script = Script(
        problem(429, **{"retry-after": "7"}), problem(503, **{"retry-after": "Sat, 31 Jan 2026 09:00:11 GMT"}), ok()
    )
    script.client().live()
    assert script.waits == [7.0, 11.0]


def test_a_retry_after_beyond_patience_is_told_instead():
    script = Script(problem(429, **{"retry-after": "3600"}))
    with pytest.raises(ServiceError) as refused:
        script.client().live()
    assert refused.value.retry_after == 3600.0
    assert script.waits == []


def test_what_would_happen_twice_is_asked_once():
    script = Script(httpx.ReadError("reset"))
    with pytest.raises(ServiceUnreachableError):
        script.client().retry_job(JOB)
    assert len(script.requests) == 1


def test_what_never_arrived_or_was_turned_away_is_asked_again_whatever_it_is():
    script = Script(httpx.ConnectError("refused"), problem(429), ok(examples.JOB | {"files": {}}))
    assert script.client().retry_job(JOB).id == JOB


def test_a_job_whose_answer_got_lost_is_asked_for_by_the_same_key():
    script = Script(httpx.ReadError("reset"), ok(examples.JOB | {"files": {}}))
    script.client().start_job(examples.COMPRESS_JOB)
    first, second = (request.headers["idempotency-key"] for request in script.requests)
    assert first == second
    other = Script(ok(examples.JOB | {"files": {}}))
    other.client().start_job(examples.COMPRESS_JOB)
    assert other.requests[0].headers["idempotency-key"] != first


def test_pages_are_fetched_until_there_is_none():
    pages = [{"jobs": [examples.JOB, examples.JOB], "next": "b"}, {"jobs": [examples.JOB], "next": None}]
    script = Script(*[ok(page) for page in pages])
    assert len(list(script.client().jobs(state=["running", "failed"], page=2))) == 3
    first, second = (request.url.params for request in script.requests)
    assert first.get_list("state") == ["running", "failed"]
    assert "cursor" not in first
    assert second["cursor"] == "b"


def test_a_service_that_gives_the_same_page_again_is_not_asked_for_ever():
    page = {"jobs": [examples.JOB], "next": "b"}
    assert len(list(Script(ok(page), ok(page)).client().jobs())) == 2


def test_a_page_of_something_else_is_told_as_such():
    script = Script(httpx.Response(502, text="<html>Bad gateway</html>"))
    with pytest.raises(ServiceError, match="502 Bad Gateway, and not by a service of vitfit's"):
        script.client(retries=0).live()
    with pytest.raises(UnexpectedAnswerError, match="not with JSON"):
        Script(httpx.Response(200, text="<html>hello</html>")).client().live()
    with pytest.raises(UnexpectedAnswerError, match="answer's status is not as this client knows it"):
        Script(ok({"status": "splendid"})).client().live()
    with pytest.raises(UnexpectedAnswerError, match="not with an object"):
        Script(ok([])).client().live()


# The key


def test_the_key_goes_to_the_service_and_nowhere_else():
    script = Script(httpx.Response(307, headers={"location": "http://elsewhere/"}))
    client = script.client("vf_ab_secret")
    with pytest.raises(ServiceError):
        client.live()
    assert script.requests[0].headers["authorization"] == "Bearer vf_ab_secret"
    assert len(script.requests) == 1, "no redirect is followed"
    assert "secret" not in repr(client) + repr(client.connection) + str(vars(client))


@pytest.mark.parametrize("key", ["", " ", "vf_a b\n", "vf_ü", "vf_a "])
def test_what_is_no_key_is_refused_before_it_is_sent(key):
    with pytest.raises(SettingsError, match="VITFIT_API_KEY") as refused:
        Client("http://service", key)
    assert not key.strip() or key.strip() not in str(refused.value)


@pytest.mark.parametrize(
    "server", ["", "localhost", "ftp://host", "http://", "http://h/?a=1", "http://[::1", "file:///etc"]
)
def test_what_is_no_address_is_refused(server):
    with pytest.raises(SettingsError, match="VITFIT_SERVER must be an address"):
        Client(server)


def test_an_address_with_a_password_is_refused_without_repeating_it():
    with pytest.raises(SettingsError, match="VITFIT_API_KEY") as refused:
        Client("https://me:hush@host")
    assert "hush" not in str(refused.value)


def test_a_service_may_be_behind_a_path():
    script = Script(ok())
    Client("http://host/tools/vitfit/", transport=httpx.MockTransport(script)).live()
    assert script.requests[0].url.path == "/tools/vitfit/health/live"


# Events


def stream(*texts: str) -> httpx.Response:
    return httpx.Response(200, text="".join(texts), headers={"content-type": "text/event-stream"})


STEP = 'id: 4\nevent: step\ndata: {"step": "refit"}\n\n'
PROGRESS = 'event: progress\ndata: {"done": 3}\n\n'
END = 'id: end\nevent: end\ndata: {"state": "done"}\n\n'


def test_a_stream_that_breaks_goes_on_after_the_last_event():
    script = Script(stream("retry: 2000\n\n", STEP, PROGRESS), httpx.ReadError("reset"), problem(503), stream(END))
    seen = list(script.client().follow_job(JOB))
    assert seen == [
        JobEvent("step", {"step": "refit"}, "4"),
        JobEvent("progress", {"done": 3}),
        JobEvent("end", {"state": "done"}, "end"),
    ]
    assert [request.headers.get("last-event-id") for request in script.requests] == [None, "4", "4", "4"]


def test_a_stream_that_has_ended_already_says_nothing():
    assert list(Script(httpx.Response(204)).client().follow_job(JOB, after="end")) == []


def test_a_stream_is_not_tried_for_ever():
    script = Script(*[stream("retry: 1\n\n")] * 3)
    with pytest.raises(ServiceUnreachableError, match="ended before the job did"):
        list(script.client(retries=2).follow_job(JOB))


def test_a_stream_that_is_refused_is_not_tried_again():
    with pytest.raises(ServiceError):
        list(Script(problem(404)).client().follow_job(JOB))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_read_whatever_pieces_they_come_in(size):
    text = ': hello\r\n\r\nevent: log\r\ndata: {"a":\r\ndata: 1}\r\rdata: {"b": "\u2028\\n"}\n\nevent: lost\ndata: {}\n'
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(events_of(pieces)) == [JobEvent("log", {"a": 1}), JobEvent("message", {"b": "\u2028\n"})]
    assert list(lines_of(pieces)) == text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]


def test_an_event_of_something_else_is_told_as_such():
    with pytest.raises(UnexpectedAnswerError, match="no JSON object"):
        list(events_of(["data: [1]\n\n"]))


# Files


def test_a_file_arrives_whole_or_not_at_all(tmp_path):
    content = b"0123456789" * 10_000
    digest = hashlib.sha256(content).hexdigest()
    whole = httpx.Response(200, content=content, headers={"etag": f'"{digest}"'})
    script = Script(httpx.ReadError("reset"), whole)
    path = script.client().download_job_file(JOB, "model.onnx", tmp_path / "new" / "model.onnx")
    assert path.read_bytes() == content
    damaged = httpx.Response(200, content=content[:-1], headers={"etag": f'"{digest}"'})
    with pytest.raises(UnexpectedAnswerError, match="damaged"):
        Script(damaged).client().download_job_file(JOB, "model.onnx", path)
    with pytest.raises(ServiceError):
        Script(problem(404)).client().download_job_file(JOB, "model.onnx", path)
    assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]
