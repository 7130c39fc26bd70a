"""What is logged, as lines to read and as JSON, by the service as a user starts it."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from api.logs import JsonLines
from api.settings import Settings, SettingsError
from tests.api.test_service_socket import ROOT, first_match

KEY = f"vf_0123456789ab_{'A' * 43}"


def served(data_dir: Path, **settings: str) -> str:
    """The log of a service that answers three requests."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VITFIT_DATA_DIR": str(data_dir), "VITFIT_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "api.cli", "serve"],
        cwd=ROOT,
        env=environment | settings,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        address = first_match(process.stderr, r"running on (http://127\.0\.0\.1:\d+)")
        with httpx.Client(base_url=address, timeout=60, headers={"authorization": f"Bearer {KEY}"}) as client:
            client.get("/v1/presets", headers={"x-request-id": "monday-1"})
            client.get("/v1/targets/nope", params={"hidden": "hunter2"})
            client.get("/v1/targets/a%0Ab")
        process.send_signal(signal.SIGTERM)
        return process.communicate(timeout=60)[1]
    finally:
        process.kill()


def test_json_logs_are_an_object_a_line_with_every_request(data_dir):
    log = served(data_dir, VITFIT_LOG="json")
    records = [json.loads(line) for line in log.splitlines()]
    assert {(one["process"], one["level"]) for one in records} == {("service", "info")}
    requests = [one for one in records if one["logger"] == "api.access"]
    assert [(one["method"], one["path"], one["status"]) for one in requests] == [
        ("GET", "/v1/presets", 200),
        ("GET", "/v1/targets/nope", 404),
        ("GET", "/v1/targets/a\nb", 404),
    ]
    assert requests[0]["request_id"] == "monday-1"
    assert (requests[0]["client"], requests[0]["key"]) == ("127.0.0.1", None)
    assert all(one["ms"] > 0 for one in requests)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", one["time"]) for one in records)
    assert "hunter2" not in log
    assert KEY not in log


def test_text_logs_are_a_line_a_request_whatever_its_path_has(data_dir):
    log = served(data_dir)
    assert re.search(r'^INFO: service: 127\.0\.0\.1 "GET /v1/presets" 200 \d+\.\d ms monday-1$', log, re.MULTILINE)
    assert r"/v1/targets/a\nb" in log
    assert "hunter2" not in log
    assert KEY not in log


def test_an_exception_is_in_its_line():
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "it %s", ("failed",), sys.exc_info())
    found = json.loads(JsonLines("worker").format(record))
    assert (found["process"], found["level"], found["message"]) == ("worker", "error", "it failed")
    assert found["exception"].endswith("ValueError: broken")


def test_another_format_is_refused():
    with pytest.raises(SettingsError, match="VITFIT_LOG"):
        Settings(log="xml")
