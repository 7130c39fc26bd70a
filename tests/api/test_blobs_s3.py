"""Blobs in an S3-compatible server, over real HTTP: what is true of a folder is true of it."""

import hashlib

import boto3
import pytest
from moto.server import ThreadedMotoServer

from api.blobs import BlobError, Blobs
from api.settings import Settings


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="vitfit")
    yield s3
    for found in s3.list_objects_v2(Bucket="vitfit").get("Contents", []):
        s3.delete_object(Bucket="vitfit", Key=found["Key"])
    s3.delete_bucket(Bucket="vitfit")


def machine(folder) -> Blobs:
    return Blobs.of(Settings(data_dir=folder, blob_url="s3://vitfit/blobs"))


def keys(s3) -> list[str]:
    return [found["Key"] for found in s3.list_objects_v2(Bucket="vitfit").get("Contents", [])]


def test_a_blob_is_one_object_named_by_its_sha256(bucket, tmp_path):
    blobs, data = machine(tmp_path / "a"), b"some bytes" * 1000
    digest = blobs.put_bytes(data)
    assert digest == hashlib.sha256(data).hexdigest() == blobs.put_bytes(data)
    assert keys(bucket) == [f"blobs/{digest}"]
    assert bucket.get_object(Bucket="vitfit", Key=f"blobs/{digest}")["Body"].read() == data
    blobs.delete(digest)
    assert keys(bucket) == []
    assert not blobs.exists(digest)
    blobs.delete(digest)


def test_another_machine_with_an_empty_folder_has_it(bucket, tmp_path):
    digest = machine(tmp_path / "a").put_bytes(b"weights")
    there = machine(tmp_path / "b")
    assert there.exists(digest)
    assert there.local(digest).read_bytes() == b"weights"
    assert there.size(digest) == 7


def test_other_bytes_under_the_name_are_refused_and_not_kept(bucket, tmp_path):
    digest = machine(tmp_path / "a").put_bytes(b"weights")
    bucket.put_object(Bucket="vitfit", Key=f"blobs/{digest}", Body=b"tampered")
    with pytest.raises(BlobError, match="other bytes"):
        machine(tmp_path / "b").local(digest)
    assert [path for path in (tmp_path / "b").rglob("*") if path.is_file()] == []


def test_a_bucket_that_is_not_there_is_one_clear_error_and_leaves_nothing(bucket, tmp_path):
    blobs = Blobs.of(Settings(data_dir=tmp_path / "a", blob_url="s3://nobody-has-this/blobs"))
    with pytest.raises(BlobError, match="cannot be reached in VITFIT_BLOB_URL"):
        blobs.put_bytes(b"weights")
    assert [path for path in (tmp_path / "a").rglob("*") if path.is_file()] == []
