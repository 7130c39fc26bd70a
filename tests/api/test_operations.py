"""Back-up and restore, and the doctor."""

import json
import os
import tarfile

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.backup import BackupError, back_up, restore
from api.db import Database
from api.doctor import examine
from api.keys import Keys
from api.settings import Settings
from search.saliency import save_saliency
from tests.api.factories import TINY, fill
from tests.reference import random_saliency


@pytest.fixture
def lived_in(tmp_path):
    """A data folder with a key and an upload in it."""
    root = fill(tmp_path / "library")
    settings = Settings(data_dir=root, shipped_tables=False)
    path = tmp_path / "s.safetensors"
    save_saliency(random_saliency(TINY, seed=4), path)
    with TestClient(create_app(settings)) as client:
        answer = client.post(
            "/v1/saliencies",
            params={"name": "mine"},
            content=path.read_bytes(),
            headers={"content-type": "application/octet-stream"},
        )
        assert answer.status_code == 201, answer.text
        _, text = client.app.state.keys.create("me", "read")
    return settings, text


def test_what_was_backed_up_is_restored_with_its_keys_and_uploads(lived_in, tmp_path):
    settings, text = lived_in
    made = back_up(settings, tmp_path / "b.tar.gz")
    assert made["files"] >= 4
    restore(tmp_path / "b.tar.gz", tmp_path / "again")
    again = Settings(data_dir=tmp_path / "again", shipped_tables=False)
    database = Database(f"sqlite:///{again.data_dir / 'vitfit.sqlite'}")
    assert Keys(lambda: database).check(text).name == "me"
    database.close()
    with TestClient(create_app(again)) as client:
        assert {one["saliency"] for one in client.get("/v1/saliencies").json()["saliencies"]} == {"mine", "tiny"}
        assert client.delete("/v1/saliencies/mine").json() == {"deleted": True}


def test_a_back_up_takes_nothings_place_and_a_restore_nobodys(lived_in, tmp_path):
    settings, _ = lived_in
    out = tmp_path / "b.tar.gz"
    back_up(settings, out)
    with pytest.raises(BackupError, match="there already"):
        back_up(settings, out)
    with pytest.raises(BackupError, match="not empty"):
        restore(out, settings.data_dir)
    with pytest.raises(BackupError, match="inside the data folder"):
        back_up(settings, settings.data_dir / "b.tar.gz")
    with pytest.raises(BackupError, match="no data folder"):
        back_up(Settings(data_dir=tmp_path / "none"), tmp_path / "c.tar.gz")
    assert not list(tmp_path.glob(".*"))


def _repacked(source, target, change):
    with tarfile.open(source) as old, tarfile.open(target, "w:gz") as new:
        for member in old.getmembers():
            content = old.extractfile(member).read()
            content = change(member.name, content)
            if content is not None:
                member.size = len(content)
                import io

                new.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda name, content: content + b"x" if name.endswith(".parquet") else content,
        lambda name, content: None if name.endswith(".parquet") else content,
        lambda name, content: None if name == "manifest.json" else content,
        lambda name, content: b"[]" if name == "manifest.json" else content,
    ],
)
def test_a_damaged_back_up_is_refused_and_leaves_nothing(lived_in, tmp_path, change):
    settings, _ = lived_in
    back_up(settings, tmp_path / "b.tar.gz")
    _repacked(tmp_path / "b.tar.gz", tmp_path / "bad.tar.gz", change)
    with pytest.raises(BackupError):
        restore(tmp_path / "bad.tar.gz", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    (tmp_path / "no.tar.gz").write_bytes(os.urandom(100))
    with pytest.raises(BackupError, match="no back-up"):
        restore(tmp_path / "no.tar.gz", tmp_path / "again")


def test_the_doctor_finds_what_is_wrong_and_says_what_to_do(tmp_path, run_cli):
    findings = {one.name: one for one in examine(Settings(data_dir=tmp_path, port=0))}
    assert {findings[name].state for name in ("python", "torch", "data folder", "database", "blobs")} == {"ok"}
    findings = {one.name: one for one in examine(Settings(data_dir=tmp_path, host="0.0.0.0", port=0))}
    assert findings["API keys"].state == "fail"
    assert "vitfit keys create" in findings["API keys"].do
    (tmp_path / "file").write_text("")
    status, out, _ = run_cli("doctor", "--data-dir", tmp_path / "file", "--json")
    assert status == 1
    assert any(one["state"] == "fail" and one["do"] for one in json.loads(out)["findings"])
