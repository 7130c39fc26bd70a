"""The images: read by real parsers, and what the service's runs, run as it is written by a user without rights."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from docker.service_requirements import WORKERS, service_requirements
from tests.docker.images import ROOT, Built, as_user, stages

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile*"))
SERVICE, WORKER = ROOT / "docker" / "Dockerfile", ROOT / "docker" / "Dockerfile.cuda"
COMPOSE = ROOT / "docker" / "compose.yaml"
USER = 10001


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.name)


@each(DOCKERFILES)
def test_hadolint_has_nothing_to_say(path):
    """DL3059 (consecutive RUNs) aside: each is a layer that is kept for a reason of its own."""
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [program, "--ignore", "DL3059", path], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@each(DOCKERFILES)
def test_an_image_starts_as_a_user_without_a_name_and_in_the_form_that_gets_signals(path):
    last = stages(path)[-1]
    assert last.last("USER").value == (f"{USER}:{USER}",)
    assert last.instructions.index(last.last("USER")) > max(last.instructions.index(one) for one in last.all("RUN"))
    assert last.last("CMD").json, "a shell would keep SIGTERM to itself"
    assert len(last.all("HEALTHCHECK")) == 1
    assert last.environment["VITFIT_DATA_DIR"] == "/data"
    assert last.environment["VITFIT_UID"] == str(USER)


@each(DOCKERFILES)
def test_base_images_have_a_version_and_secrets_are_in_no_layer(path):
    named = {stage.name for stage in stages(path)}
    for stage in stages(path):
        assert stage.base in named or (":" in stage.base and not stage.base.endswith(":latest"))
        words = {name.upper() for name in stage.environment}
        assert not {word for word in words if any(bad in word for bad in ("KEY", "PASSWORD", "SECRET", "TOKEN"))}


@each(DOCKERFILES)
def test_every_package_of_ours_is_copied_and_the_context_holds_what_is_copied(path):
    copied = {source.rstrip("/") for stage in stages(path) for one in stage.all("COPY") if not one.flags
              for source in one.value[:-1]}  # fmt: skip
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {name.partition(".")[0] for name in packages} <= copied
    kept = context_rules()
    for source in copied:
        assert (ROOT / source).exists()
        assert in_context(source, kept), f"{source} is left out by .dockerignore"


def context_rules() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def in_context(path: str, rules: list[str]) -> bool:
    """The last rule that matches decides; so does one for a folder above (moby's patternmatcher)."""
    parts = Path(path).parts
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    kept = True
    for rule in rules:
        pattern = rule.lstrip("!").removeprefix("**/")
        anywhere = rule.lstrip("!").startswith("**/")
        tried = parts if anywhere else above
        if any(fnmatch(one, pattern) for one in tried):
            kept = rule.startswith("!")
    return kept


@pytest.mark.parametrize(
    "path", [".git/config", "docker/.env", ".venv/bin/python", "tests/conftest.py", "api/__pycache__/x.pyc"]
)
def test_what_has_no_place_in_an_image_is_not_in_the_context(path):
    assert not in_context(path, context_rules())


def test_the_service_needs_all_but_what_works_on_models():
    pyproject = (ROOT / "pyproject.toml").read_text()
    found = service_requirements(pyproject)
    every = tomllib.loads(pyproject)["project"]["dependencies"]
    assert set(found) < set(every)
    assert len(every) - len(found) == len(WORKERS)
    assert not [one for one in found if one.startswith("torch")]
    with pytest.raises(SystemExit, match="torchvision"):
        service_requirements(pyproject.replace('"torchvision>', '"torchvision-new>'))


def test_the_worker_image_says_what_a_v100_needs():
    text = WORKER.read_text()
    assert "V100" in text
    assert "TORCH_INDEX_URL" in {one.value[0].partition("=")[0] for one in stages(WORKER)[-1].all("ARG")}


# Compose


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def test_the_compose_file_is_what_the_compose_specification_allows(compose):
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    errors = [
        f"{'.'.join(map(str, error.path))}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(compose)
    ]
    assert errors == []


def test_the_check_of_compose_files_can_fail(compose):
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    broken = compose | {"services": compose["services"] | {"service": {"image": "vitfit", "restrat": "always"}}}
    assert list(Draft202012Validator(schema).iter_errors(broken))


def test_our_containers_may_write_nowhere_but_in_volumes_and_gain_no_rights(compose):
    ours = {name: one for name, one in compose["services"].items() if one["image"].startswith("vitfit")}
    assert set(ours) == {"migrate", "service", "worker", "worker-cuda", "ray-head"}
    for name, one in ours.items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert one["volumes"] == ["data:/data"], name
        assert "privileged" not in one
        assert "user" not in one, "the image's own"


def test_only_the_service_can_be_reached_and_that_from_this_machine_alone(compose):
    assert compose["networks"]["inside"]["internal"] is True
    published = {name: one["ports"] for name, one in compose["services"].items() if "ports" in one}
    assert published == {"service": ["127.0.0.1:8000:8000"]}
    assert [name for name, one in compose["services"].items() if one["networks"] != ["inside"]] == ["service"]


def test_a_database_without_a_password_is_not_started(compose):
    database = compose["services"]["database"]["environment"]["POSTGRES_PASSWORD"]
    assert database == compose["services"]["service"]["environment"]["PGPASSWORD"]
    assert database.startswith("${VITFIT_DATABASE_PASSWORD:?")


def test_everything_starts_after_what_it_needs(compose):
    services = compose["services"]
    assert services["migrate"]["depends_on"]["database"]["condition"] == "service_healthy"
    for name in ("service", "worker", "worker-cuda", "ray-head"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    for one in services.values():
        assert set(one.get("networks", [])) <= set(compose["networks"])
        for volume in one.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"]
        if "build" in one:
            assert (COMPOSE.parent / one["build"]["context"] / one["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("service", ["migrate", "worker", "worker-cuda"])
def test_commands_of_containers_are_commands_of_ours(compose, service, run_help):
    one = compose["services"][service]
    command = one.get("command") or list(stages(WORKER)[-1].last("CMD").value)
    assert command[0] == "vitfit"
    options = [word for word in command[1:] if word.startswith("--")]
    named = [word for word in command[1:] if not word.startswith("--")]
    text = run_help(*(named[:2] if named[0] == "db" else named[:1]))
    for option in options:
        assert option in text


@pytest.fixture
def run_help():
    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "api.cli", *command, "--help"],
            cwd=ROOT,
            env={"COLUMNS": "200", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    return run


# What the service's image does


def unreachable_index() -> str | None:
    """Why pip finds no packages here, if it does not."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, folder, "annotated-doc"], capture_output=True, text=True, check=False, timeout=300
        )
    return None if done.returncode == 0 else f"pip reaches no index: {done.stderr.strip().splitlines()[-1:]}"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where another user may go, too."""
    path = Path(tempfile.mkdtemp(prefix="vitfit-image-"))
    path.chmod(0o755)
    yield path
    subprocess.run(["chmod", "-R", "u+w", path], check=False)
    shutil.rmtree(path)


@pytest.mark.slow
def test_what_the_service_image_runs_gives_a_service_without_torch_that_stops_in_peace(folder):
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux), which makes root another user, is not here")
    if reason := unreachable_index():
        pytest.skip(reason)
    user = USER if os.geteuid() == 0 else os.getuid()
    if (python := python_of(user)) is None:
        pytest.skip("there is no Python with venv that another user than root may run")
    built = Built(folder / "root", user, python)
    build, final = stages(SERVICE)
    built.build(build, timeout=1500)
    built.build(final, timeout=60)
    assert built.log == [one.value[0] for stage in (build, final) for one in stage.all("RUN")]

    opt = Path(built.inside("/opt"))
    subprocess.run(["chmod", "-R", "a-w", opt], check=True)  # a root that can only be read
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "0:0", opt], check=True)
    packages = json.loads(built.run(["python", "-m", "pip", "list", "--format", "json"], final, folder, 120))
    assert "vitfit" in {one["name"] for one in packages}
    assert not {one["name"] for one in packages} & WORKERS
    assert not [one["name"] for one in packages if one["name"].startswith("nvidia")]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = built.environment(final) | {"VITFIT_PORT": str(port), "VITFIT_HOST": "127.0.0.1"}
    directory = Path(built.inside("/data"))
    assert directory.stat().st_mode & 0o777 == 0o700
    log = (folder / "log").open("w+")
    service = subprocess.Popen(
        as_user(built.user, list(final.last("CMD").value)), cwd="/", env=environment, stderr=log, stdout=log
    )
    try:
        wait_for(port, service, log)
        health = as_user(built.user, list(final.last("HEALTHCHECK").value[1:]))
        assert final.last("HEALTHCHECK").value[0] == "CMD"
        assert subprocess.run(health, cwd="/", env=environment, timeout=60, check=False).returncode == 0
        body = json.dumps({"targets": ["macs"], "architectures": [{"preset": "deit-s"}]}).encode()
        question = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/latency/estimate", body, {"content-type": "application/json"}
        )
        answer = json.load(urllib.request.urlopen(question, timeout=60))
        assert answer["architectures"][0]["estimates"][0]["latency_ms"] > 0
        assert owner_of(service.pid) == built.user
    finally:
        service.terminate()
        status = service.wait(60)
        log.close()
    assert status in (0, -15, 143), (folder / "log").read_text()[-2000:]
    assert subprocess.run(
        health, cwd="/", env=environment, timeout=60, check=False, stderr=subprocess.DEVNULL
    ).returncode


def python_of(user: int) -> Path | None:
    """An interpreter of the version that the tests run in, which a user may run; root's own may lie in root's home."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (Path(sys.base_prefix) / "bin" / name, Path("/usr/bin") / name, Path("/usr/local/bin") / name):
        program = [str(python), "-c", "import ensurepip, venv"]
        command = as_user(user, program)
        if python.exists() and subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0:
            return python
    return None


def wait_for(port: int, service: subprocess.Popen[bytes], log: Any) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        log.seek(0)
        assert service.poll() is None, log.read()[-4000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the service did not start")


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid
