"""The service over a small library, and the command line, asked in the same process."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.cli import main
from api.settings import Settings
from tests.api.factories import fill


@pytest.fixture(autouse=True)
def _own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that a test runs leave the user's library alone."""
    monkeypatch.setenv("VITFIT_DATA_DIR", str(tmp_path / "own-library"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return fill(tmp_path / "library")


@pytest.fixture
def app(data_dir: Path) -> FastAPI:
    """Without the tables that come with vitfit, so that a test knows all that there is."""
    return create_app(Settings(data_dir=data_dir, shipped_tables=False))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Runs one command line; gives (exit status, stdout, stderr). Lines are as long as they want to be."""
    for console in ("out", "err"):
        monkeypatch.setattr(f"api.console.{console}.width", 400, raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vitfit", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


Refused = Callable[..., dict[str, Any]]


@pytest.fixture
def refused(client: TestClient) -> Refused:
    """Sends a request that must fail, and returns its problem once that is found to be a whole one."""

    def send(
        method: str,
        path: str,
        status: int,
        kind: str,
        *,
        field: str | None = None,
        says: tuple[str, ...] = (),
        **request: Any,
    ) -> dict[str, Any]:
        response = client.request(method, path, **request)
        problem = response.json()
        assert response.status_code == status, problem
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["x-request-id"]
        assert problem["status"] == status
        assert problem["type"] == f"/problems/{kind}", problem
        assert problem["title"]
        assert problem["instance"] == path.split("?")[0]
        assert problem.get("field") == field, problem
        for words in says:
            assert words in problem["detail"]
        assert set(problem) <= {"type", "title", "status", "detail", "instance", "field", "hint"}
        return problem

    return send
