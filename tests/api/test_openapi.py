"""The description of the interface is valid, its examples are true to it, and the service behaves as described."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from api import examples
from api.app import create_app
from api.problems import MEDIA_TYPE
from api.settings import Settings
from api.uploads import PATHS as UPLOADS
from search.saliency import save_saliency
from tests.api.factories import DIGITS, TINY, fill, save_model
from tests.reference import random_saliency

Document = dict[str, Any]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    root = fill(tmp_path_factory.mktemp("library"))
    save_saliency(random_saliency(TINY, 2), root / "saliencies" / f"{examples.SEARCH_REQUEST['saliency']}.safetensors")
    save_model(DIGITS, root / "models" / f"{examples.COMPRESS_JOB['model']}.safetensors")
    (root / "datasets" / examples.COMPRESS_JOB["data"]).mkdir(parents=True)
    return create_app(Settings(data_dir=root, worker=False))


@pytest.fixture(scope="module")
def document(app) -> Document:
    return json.loads(json.dumps(app.openapi()))


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def contents(document: Document) -> Iterator[tuple[str, Document]]:
    """Every media type of every body and response, with where it is."""
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        for media_type in operation.get("requestBody", {}).get("content", {}).values():
            yield f"{where} body", media_type
        for status, response in operation["responses"].items():
            assert ("content" in response) == (status not in ("204", "304")), f"{where} {status}"
            for media_type in response.get("content", {}).values():
                yield f"{where} {status}", media_type


def resolved(document: Document, schema: Document) -> Document:
    return document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def examples_of(document: Document, media_type: Document) -> list[Any]:
    named = [example["value"] for example in media_type.get("examples", {}).values()]
    return named or resolved(document, media_type["schema"]).get("examples", [])


def errors_of(document: Document, schema: Document, value: object) -> list[str]:
    whole = {**schema, "components": document["components"]}
    return [error.message for error in Draft202012Validator(whole).iter_errors(value)]


def test_the_description_is_valid_openapi_3_1(document):
    validate(document)
    assert document["openapi"].startswith("3.1")


def test_every_body_and_response_has_an_example_that_its_schema_allows(document):
    seen = 0
    for where, media_type in contents(document):
        shown = examples_of(document, media_type)
        assert shown, f"{where} has no example"
        for example in shown:
            assert errors_of(document, media_type["schema"], example) == [], where
            seen += 1
    assert seen > 40


def test_examples_of_schemas_are_allowed_by_them(document):
    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", []):
            assert errors_of(document, {"$ref": f"#/components/schemas/{name}"}, example) == [], name


ELSEWHERE = {*UPLOADS, "/v1/tables/compare"}
"""Requests whose examples are no files, or name tables that only the reader has: tests/api/test_store.py sends them."""


def test_every_example_of_a_request_is_answered(client_of_examples, document):
    for method, path, operation in operations(document):
        if path in ELSEWHERE:
            continue
        for media_type in operation.get("requestBody", {}).get("content", {}).values():
            for example in examples_of(document, media_type):
                response = client_of_examples.request(method, path, json=example)
                assert response.status_code == (202 if path == "/v1/jobs" else 200), (path, response.text)


@pytest.fixture(scope="module")
def client_of_examples(app):
    from starlette.testclient import TestClient

    return TestClient(app)


OTHERS = {
    "/files/": "application/octet-stream",
    "/{id}/events": "text/event-stream",
    "/{id}/log": "text/plain",
    "/staircase": "application/octet-stream",
    "/{id}/file": "application/octet-stream",
    "/{name}/file": "application/octet-stream",
    "/{id}/onnx": "application/octet-stream",
    "/{id}/code": "text/x-python",
    "/architectures/code": "text/plain",
}
"""Part of a path -> what its answers are, where they are no JSON."""


def test_problems_are_problem_json_and_everything_else_is_json(document):
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            answer = next((kind for part, kind in OTHERS.items() if part in path), "application/json")
            expected = answer if status in ("200", "201", "202") else MEDIA_TYPE
            assert list(response.get("content", [expected])) == [expected], (method, path, status)
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])


def test_every_operation_is_summed_up_and_described(document):
    for method, path, operation in operations(document):
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)
        assert operation["tags"], (method, path)
    for method, path in (
        ("post", "/v1/latency/estimate"),
        ("post", "/v1/architectures/search"),
        ("post", "/v1/architectures/redistribute"),
        ("get", "/v1/targets"),
        ("post", "/v1/jobs"),
    ):
        assert "millions of MACs" in document["paths"][path][method]["description"]


CONFORMANCE = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]


GETS = ["/health/live", "/health/ready", "/v1/targets", "/v1/targets/{slug}", "/v1/presets", "/v1/saliencies"]
GETS += ["/v1/jobs/{id}", "/v1/jobs/{id}/files/{name}", "/v1/jobs/{id}/log", "/v1/studies", "/v1/studies/{name}"]
GETS += [f"/v1/architectures/{{id}}{what}" for what in ("", "/json", "/code", "/onnx")]
GETS += [
    "/v1/tables/{id}",
    *(f"/v1/{noun}/{{name}}{what}" for noun in ("models", "saliencies") for what in ("", "/file")),
]
GETS += ["/v1/models"]
POSTS = ["/v1/latency/estimate", "/v1/architectures/search", "/v1/architectures/redistribute", "/v1/jobs"]
POSTS += [f"/v1/catalogue/{what}" for what in ("find", "pareto", "compare", "search")]
POSTS += ["/v1/architectures/staircase", "/v1/architectures/code", "/v1/frontiers", "/v1/tables/compare"]
GENERATED = [
    *(("post", path, GenerationMode.POSITIVE, 10) for path in UPLOADS),
    *(("delete", path, GenerationMode.POSITIVE, 5) for path in ("/v1/tables/{id}", "/v1/models/{name}")),
    ("delete", "/v1/saliencies/{name}", GenerationMode.POSITIVE, 5),
    *(
        ("get", path, mode, 20)
        for path in ("/v1/tables", "/v1/tables/{id}/file", "/v1/audit")
        for mode in GenerationMode
    ),
    *(("get", path, GenerationMode.POSITIVE, 5) for path in GETS),  # nothing about them can be malformed
    *(("post", f"/v1/jobs/{{id}}/{what}", GenerationMode.POSITIVE, 5) for what in ("cancel", "retry")),
    ("delete", "/v1/jobs/{id}", GenerationMode.POSITIVE, 5),
    ("get", "/v1/jobs/{id}/events", GenerationMode.POSITIVE, 5),
    *(("get", "/v1/studies/{name}/trials", mode, 20) for mode in GenerationMode),
    *(("get", "/v1/jobs", mode, 20) for mode in GenerationMode),
    *(("post", path, mode, 100) for path in POSTS for mode in GenerationMode),
]


@pytest.mark.parametrize(("method", "path", "mode", "count"), GENERATED)
def test_generated_requests_are_answered_as_described(app, method, path, mode, count):
    operation = schemathesis.openapi.from_asgi("/openapi.json", app)[path][method]
    checks = CHECKS.get_by_names(CONFORMANCE)

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    def conforms(case):
        case.call_and_validate(checks=checks)

    conforms()


def test_requests_are_generated_for_every_operation(document):
    assert {(method, path) for method, path, *_ in GENERATED} == {(m, p) for m, p, _ in operations(document)}
