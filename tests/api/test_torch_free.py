"""Asking needs no torch: the service starts, and answers a search, in a process that never loads it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
from pathlib import Path
from api.app import create_app
from api.settings import Settings

app = create_app(Settings(data_dir=Path(sys.argv[1])))
assert "torch" not in sys.modules, "create_app loads torch"
assert "numba" not in sys.modules, "create_app loads numba, which only the first query needs"
assert "dbos" not in sys.modules, "create_app loads DBOS, which only jobs need"

from starlette.testclient import TestClient

client = TestClient(app)
answer = client.post(
    "/v1/architectures/search", json={"saliency": "tiny", "target": "testbed-eager-fp32-b2-n5", "speedup": 1.2}
)
assert answer.status_code == 200, answer.text
body = {"targets": ["macs", "v100-eager-amp-b256-n197"], "architectures": [{"preset": "deit-s"}]}
assert client.post("/v1/latency/estimate", json=body).status_code == 200
assert client.get("/v1/jobs").json() == {"jobs": [], "next": None}
for path in ("/", "/architecture", "/openapi.json", "/v1/presets", "/v1/saliencies", "/v1/targets", "/health/ready"):
    assert client.get(path).status_code == 200, path
assert client.get("/v1/architectures/deit-s/code").status_code == 200
loaded = {"torch", "torchvision", "timm"} & set(sys.modules)
assert not loaded, loaded
"""


def test_the_service_starts_and_answers_without_torch(data_dir):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(data_dir)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "HOME": str(data_dir), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
