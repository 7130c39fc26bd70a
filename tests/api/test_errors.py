"""Whatever is wrong with a request, the answer is one problem+json that says what, and what would be right."""

import asyncio
import importlib
import json
import pkgutil
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

import latency
import search
import vit
from api import errors, problems
from api.app import create_app
from api.errors import KINDS, LocatedError, at, kind_of
from api.middleware import BodyLimit
from api.settings import Settings, SettingsError, default_data_dir
from tests.api.factories import TINY
from vit.errors import ArchitectureError, UnknownNameError, VitfitError

ESTIMATE, SEARCH, REDISTRIBUTE = (
    "/v1/latency/estimate",
    "/v1/architectures/search",
    "/v1/architectures/redistribute",
)
JSON = {"content-type": "application/json"}


def every_error_class() -> set[type[VitfitError]]:
    for package in (vit, latency, search):
        for module in pkgutil.iter_modules(package.__path__):
            if module.name == "errors":
                importlib.import_module(f"{package.__name__}.errors")
    found, seen = [VitfitError], set()
    while found:
        found += (children := found.pop().__subclasses__())
        seen |= set(children)
    return {error for error in seen if error.__module__.split(".")[0] in ("vit", "latency", "search")}


@pytest.mark.parametrize("error", sorted(every_error_class(), key=lambda e: e.__name__))
def test_every_error_of_the_domain_has_a_row_of_its_own(error):
    assert error in KINDS
    assert 400 <= KINDS[error].status < 500


def test_every_kind_of_problem_has_one_name():
    kinds = {*KINDS.values(), *errors.HTTP_KINDS.values()}
    assert len({kind.type for kind in kinds}) == len(kinds)


def test_an_exception_is_what_its_nearest_base_class_is():
    class Special(ArchitectureError):
        pass

    assert kind_of(Special("x")) is problems.INVALID_ARCHITECTURE
    assert kind_of(VitfitError("x")) is problems.REFUSED
    assert kind_of(ZeroDivisionError()) is problems.INTERNAL


def test_the_innermost_place_names_the_field():
    def fail():
        with at("outer"), at("architectures[1]"):
            raise ArchitectureError("too wide", "embed_dim")

    with pytest.raises(LocatedError) as caught:
        fail()
    assert caught.value.field == "architectures[1].embed_dim"
    assert isinstance(caught.value.cause, ArchitectureError)


@pytest.mark.parametrize("path", ["/nope", "/v1/targets/", "/v1", "/V1/targets", "/docs", "/v1/targets/a/b"])
def test_an_unknown_path_is_a_404_problem(refused, path):
    refused("GET", path, 404, "not-found", says=("nothing", path))


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("PUT", "/v1/targets", "GET"), ("GET", ESTIMATE, "POST"), ("DELETE", "/v1/targets/macs", "GET")],
)
def test_a_wrong_method_is_a_405_problem_that_names_the_right_one(client, refused, method, path, allowed):
    refused(method, path, 405, "method-not-allowed", says=(method, f"allowed: {allowed}"))
    assert client.request(method, path).headers["allow"] == allowed


@pytest.mark.parametrize("path", [ESTIMATE, SEARCH, REDISTRIBUTE])
@pytest.mark.parametrize(
    "headers", [{"content-type": "text/plain"}, {"content-type": "application/xml"}, {"content-type": ""}, {}]
)
def test_a_body_that_does_not_say_it_is_json_is_a_415_problem(refused, path, headers):
    problem = refused("POST", path, 415, "unsupported-media-type", content=b"{}", headers=headers)
    assert "application/json" in problem["detail"]


def test_json_with_a_character_set_is_json(client):
    headers = {"content-type": "application/json; charset=utf-8"}
    assert client.post(REDISTRIBUTE, content=b'{"embed_dim": 384}', headers=headers).status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"{", b"{'a': 1}", b"\xff\xfe", b"[" * 100_000, b"1" * 5_000, b'{"a": }', b"nul"],
    ids=["open", "single quotes", "no UTF-8", "deep", "long number", "no value", "cut"],
)
def test_what_is_no_json_is_a_400_problem(refused, content):
    refused("POST", ESTIMATE, 400, "invalid-json", says=("not JSON",), content=content, headers=JSON)


@pytest.mark.parametrize("path", [ESTIMATE, SEARCH, REDISTRIBUTE])
@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"3", b'"x"'])
def test_a_body_that_is_no_object_is_a_422_problem(refused, path, content):
    refused("POST", path, 422, "invalid-request", says=("the request body",), content=content, headers=JSON)


def small(data_dir: Path) -> TestClient:
    return TestClient(create_app(Settings(data_dir=data_dir, max_body_bytes=1_000)), raise_server_exceptions=False)


def test_a_body_may_be_as_large_as_the_limit_and_not_a_byte_larger(data_dir):
    body = b'{"embed_dim": 384}'
    client = small(data_dir)
    assert client.post(REDISTRIBUTE, content=body.ljust(1_000), headers=JSON).status_code == 200
    response = client.post(REDISTRIBUTE, content=body.ljust(1_001), headers=JSON)
    assert response.status_code == 413
    assert response.json()["type"] == "/problems/body-too-large"
    assert "1000 bytes" in response.json()["detail"]


def test_a_chunked_body_is_held_to_the_same_limit(data_dir):
    client = small(data_dir)
    response = client.post(REDISTRIBUTE, content=(b" " * 300 for _ in range(4)), headers=JSON)
    assert (response.status_code, response.json()["status"]) == (413, 413)
    chunks = iter([b'{"embed_dim"', b": 384}", b" " * 900])
    assert client.post(REDISTRIBUTE, content=chunks, headers=JSON).status_code == 200


@pytest.mark.parametrize(("sizes", "taken"), [([400, 400, 200], 3), ([400, 400, 201], 2), ([1_001], 0), ([0] * 50, 50)])
def test_a_body_is_counted_over_all_its_messages(sizes, taken):
    messages = iter([{"type": "http.request", "body": b" " * size, "more_body": True} for size in sizes])
    got = []

    async def receive():
        return next(messages)

    async def read_all(scope, receive, send):
        for _ in sizes:
            got.append(await receive())

    limited = BodyLimit(read_all, max_bytes=1_000)({"type": "http", "headers": []}, receive, receive)
    if taken == len(sizes):
        asyncio.run(limited)
    else:
        with pytest.raises(HTTPException, match="at most 1000 bytes"):
            asyncio.run(limited)
    assert len(got) == taken


def test_a_length_that_lies_does_not_lift_the_limit(data_dir):
    headers = {**JSON, "content-length": "10"}
    assert small(data_dir).post(REDISTRIBUTE, content=b" " * 2_000, headers=headers).status_code == 413


def test_a_bug_is_a_500_problem_that_tells_nothing_of_the_inside(app: FastAPI, caplog):
    @app.get("/bug")
    def bug():
        raise ZeroDivisionError("secret")

    response = TestClient(app, raise_server_exceptions=False).get("/bug", headers={"x-request-id": "my-id"})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "/problems/internal-error"
    assert "secret" not in response.text
    assert "ZeroDivision" not in response.text
    assert response.headers["x-request-id"] == "my-id"
    assert "my-id" in caplog.text


def test_a_request_id_is_taken_over_when_it_is_a_plain_word_and_made_otherwise(client):
    assert client.get("/health/live", headers={"x-request-id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for bad in ("a b", "x" * 65, "<script>", ""):
        made = client.get("/health/live", headers={"x-request-id": bad}).headers["x-request-id"]
        assert len(made) == 32
        assert made != bad
    assert client.get("/nope").headers["x-request-id"] != client.get("/nope").headers["x-request-id"]


BAD_SIZES = [
    ("true", "must be a whole number, got true"),
    ('"64"', 'must be a whole number, got "64"'),
    ("null", "must be a whole number, got null"),
    ("6.5", "must be a whole number, got 6.5"),
    ("NaN", "must be a whole number, got NaN"),
    ("-Infinity", "must be a whole number, got -Infinity"),
    ("[8]", "must be a whole number, got a list"),
    ('{"a": 1}', "must be a whole number, got an object"),
    ("0", "must be at least 1, got 0"),
    ("-4", "must be at least 1, got -4"),
    ("1000000000", "must be at most 65536, got 1000000000"),
    ("1" * 500, "must be at most 65536, got 1111"),
]


@pytest.mark.parametrize(("value", "says"), BAD_SIZES)
def test_a_bad_size_is_named_with_what_is_allowed(refused, value, says):
    document = json.dumps({"targets": ["macs"], "architectures": [{"preset": "deit-s"}, TINY.to_dict()]})
    field = "architectures[1].blocks[0].qk_dim"
    content = document.replace('"qk_dim": 8', f'"qk_dim": {value}', 1)
    assert content != document
    refused(
        "POST", ESTIMATE, 422, "invalid-request", field=field, says=(f"{field} {says}",), content=content, headers=JSON
    )


def with_arch(**changes: object) -> dict[str, object]:
    document = {**TINY.to_dict(), **changes}
    return {"targets": ["macs"], "architectures": [{k: v for k, v in document.items() if v is not ...}]}


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"embed_dim": ...}, "embed_dim", "is required"),
        ({"blocks": []}, "blocks", "at least 1 entry, got 0"),
        ({"blocks": [3]}, "blocks[0]", "must be an object, got 3"),
        ({"blocks": [{"num_heads": 1, "qk_dim": 1, "v_dim": 1}]}, "blocks[0].mlp_dim", "is required"),
        ({"width": 3}, "width", "is no field here; the fields are image_size, patch_size"),
        ({"pool": "max"}, "pool", "must be one of 'token', 'avg', got \"max\""),
        ({"image_size": [16]}, "image_size", "at least 2 entries, got 1"),
        ({"image_size": [16, "x"]}, "image_size[1]", 'must be a whole number, got "x"'),
        ({"image_size": "big"}, "image_size", 'must be a whole number, got "big"'),
        ({"class_token": 1}, "class_token", "must be true or false, got 1"),
        ({"norm_eps": 2.0}, "norm_eps", "must be below 1, got 2.0"),
    ],
)
def test_a_malformed_architecture_is_named_field_by_field(refused, changes, field, says):
    field = f"architectures[0].{field}"
    refused("POST", ESTIMATE, 422, "invalid-request", field=field, says=(f"{field} ", says), json=with_arch(**changes))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"patch_size": 32}, "image_size"),
        ({"class_token": False}, "pool"),
        ({"dist_token": True, "pool": "avg"}, "dist_token"),
        ({"softmax_scale": [0.5]}, "softmax_scale"),
    ],
)
def test_an_architecture_that_describes_no_model_is_a_problem_of_its_own(refused, changes, field):
    refused("POST", ESTIMATE, 422, "invalid-architecture", field=f"architectures[0].{field}", json=with_arch(**changes))


def test_several_mistakes_make_one_sentence_and_a_count(refused):
    problem = refused("POST", ESTIMATE, 422, "invalid-request", field="targets", json={})
    assert problem["detail"] == "targets is required (and 1 more)"


def test_text_that_utf8_cannot_encode_is_quoted_safely(refused):
    content = b'{"targets": ["\\ud800"], "architectures": [{"preset": "deit-s"}]}'
    refused("POST", ESTIMATE, 422, "invalid-request", field="targets[0]", content=content, headers=JSON)


def test_an_unknown_name_says_which_names_are_known():
    assert "known: a, b" in str(UnknownNameError("target", "x", ["a", "b"]))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("VITFIT_PORT", "web", "VITFIT_PORT must be a whole number"),
        ("VITFIT_PORT", "65536", "VITFIT_PORT must be at most 65535"),
        ("VITFIT_MAX_BODY_BYTES", "-1", "VITFIT_MAX_BODY_BYTES must be at least 1000"),
        ("VITFIT_HOST", "", "VITFIT_HOST must be text of at least 1 characters"),
    ],
)
def test_a_bad_setting_is_named_by_its_variable(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=says):
        Settings()


def test_settings_come_from_the_environment_and_are_frozen(monkeypatch, tmp_path):
    monkeypatch.setenv("VITFIT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("VITFIT_PORT", "9000")
    settings = Settings()
    assert (settings.data_dir, settings.host, settings.port) == (tmp_path, "127.0.0.1", 9000)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


def test_the_library_is_in_the_users_data_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("VITFIT_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert Settings().data_dir == tmp_path / ".local" / "share" / "vitfit"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_data_dir() == tmp_path / ".local" / "share" / "vitfit"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert Settings().data_dir == tmp_path / "xdg" / "vitfit"
