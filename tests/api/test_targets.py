"""Targets, presets and saliencies are listed with what a reader needs to trust and to use them."""

import pytest

from tests.api.factories import TINY, TINY_TARGET, V100
from vit.cost import macs, params
from vit.presets import PRESETS, PUBLISHED


def test_the_list_holds_the_tables_and_macs(client):
    document = client.get("/v1/targets").json()
    assert [(t["target"], t["kind"]) for t in document["targets"]] == [
        (TINY_TARGET.slug, "measured"),
        (V100.slug, "modelled"),
        ("macs", "analytic"),
    ]
    assert document["unreadable"] == []


@pytest.mark.parametrize("slug", [TINY_TARGET.slug, V100.slug, "macs"])
def test_one_target_reads_as_in_the_list(client, slug):
    listed = {t["target"]: t for t in client.get("/v1/targets").json()["targets"]}
    assert client.get(f"/v1/targets/{slug}").json() == listed[slug]


def test_a_target_tells_its_parts_bounds_and_evidence(client):
    target = client.get(f"/v1/targets/{V100.slug}").json()
    assert {name: target[name] for name in ("device", "runtime", "dtype", "batch", "tokens")} == V100.to_dict()
    assert target["bounds"]["embed_dim"] == [64, 768]
    assert target["kind"] == target["provenance"]["kind"] == "modelled"
    assert target["provenance"]["quality"] == {"held_out_error": 0.04}
    assert (target["unit"], target["norm"], target["file"]) == ("ms", "layer", "v100.parquet")


def test_macs_is_for_any_tokens_and_counts_in_its_own_unit(client):
    target = client.get("/v1/targets/macs").json()
    assert (target["unit"], target["tokens"], target["norm"], target["file"]) == ("million MACs", None, None, None)
    assert target["provenance"]["kind"] == "analytic"


@pytest.mark.parametrize("slug", ["v100", "..%2F..%2Fetc%2Fpasswd", "testbed.parquet", "%00", "x" * 3_000])
def test_an_unknown_target_is_a_404_problem(client, slug):
    response = client.get(f"/v1/targets/{slug}")
    assert response.status_code == 404
    assert response.json()["type"] == "/problems/not-found"


def test_a_damaged_table_is_shown_and_the_rest_answers(client, data_dir):
    (data_dir / "tables" / "broken.parquet").write_bytes(b"PAR1")
    document = client.get("/v1/targets").json()
    assert [bad["file"] for bad in document["unreadable"]] == ["broken.parquet"]
    assert len(document["targets"]) == 3


def test_a_table_that_appears_while_the_service_runs_is_found(client, data_dir):
    (data_dir / "tables" / "v100.parquet").rename(data_dir / "later.parquet")
    assert client.get(f"/v1/targets/{V100.slug}").status_code == 404
    (data_dir / "later.parquet").rename(data_dir / "tables" / "v100.parquet")
    assert client.get(f"/v1/targets/{V100.slug}").status_code == 200


def test_presets_come_with_their_costs_and_the_published_rows_with_their_source(client):
    document = client.get("/v1/presets").json()
    assert {p["preset"]: (p["id"], p["params"], p["macs"]) for p in document["presets"]} == {
        name: (arch.id, params(arch), macs(arch)) for name, arch in PRESETS.items()
    }
    assert [row["name"] for row in document["published"]] == [row.name for row in PUBLISHED]
    assert all(row["source"] for row in document["published"])


def test_a_presets_architecture_can_be_sent_back(client):
    presets = client.get("/v1/presets").json()["presets"]
    body = {"targets": ["macs"], "architectures": [p["architecture"] for p in presets]}
    answers = client.post("/v1/latency/estimate", json=body).json()["architectures"]
    assert [a["id"] for a in answers] == [p["id"] for p in presets]


def test_saliencies_name_the_model_that_they_are_of(client):
    (listed,) = client.get("/v1/saliencies").json()["saliencies"]
    assert (listed["saliency"], listed["criterion"], listed["id"]) == ("tiny", "random", TINY.id)
    assert (listed["params"], listed["macs"]) == (params(TINY), macs(TINY))


def test_alive_is_not_ready(client, data_dir):
    assert client.get("/health/live").json() == client.get("/health/ready").json() == {"status": "ok"}
    data_dir.rename(data_dir.with_name("moved"))
    assert client.get("/health/live").status_code == 200
    response = client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["type"] == "/problems/not-ready"
    assert "VITFIT_DATA_DIR" in response.json()["hint"]
