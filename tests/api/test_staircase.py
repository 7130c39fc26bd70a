"""A frontier whole, and code of any architecture, over REST."""

import json

import numpy as np
import pytest
from safetensors.numpy import load

from tests.api.factories import TINY, TINY_TARGET
from vit.architecture import Architecture
from vit.standalone_source import standalone_source

ASKED = {"saliency": "tiny", "target": TINY_TARGET.slug}


def staircase(client, **changes):
    answer = client.post("/v1/architectures/staircase", json=ASKED | changes)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int.from_bytes(answer.content[:8], "little")
    metadata = json.loads(answer.content[8 : 8 + length])["__metadata__"]
    return load(answer.content), json.loads(metadata["document"])


def test_every_budget_is_answered_as_search_answers_it(client):
    stairs, about = staircase(client)
    low, high = about["smallest_ms"], about["full_ms"]
    for budget_ms in np.linspace(low, high, 40)[1:-1].tolist():
        found = client.post("/v1/architectures/search", json=ASKED | {"budget_ms": budget_ms}).json()
        index = int(np.searchsorted(stairs["ms"], budget_ms * (1 + 1e-12), side="right")) - 1
        arch = found["architecture"]
        sizes = [
            arch["embed_dim"],
            *(b[k] for b in arch["blocks"] for k in ("num_heads", "qk_dim", "v_dim", "mlp_dim")),
        ]
        assert stairs["sizes"][index].tolist() == sizes
        assert stairs["ms"][index] == pytest.approx(found["latency_ms"])
        assert stairs["kept"][index] == pytest.approx(found["kept"])
        assert stairs["bound"][index] == pytest.approx(found["bound"])


def test_it_says_what_it_is_of(client):
    _, about = staircase(client)
    assert about["target"] == TINY_TARGET.slug
    assert about["kind"] == "measured"
    assert about["unit"] == "ms"
    assert about["whole"]["id"] == TINY.id
    assert Architecture.from_dict(about["whole"]["architecture"]) == TINY


def test_constraints_hold_for_all_answers(client):
    stairs, _ = staircase(client, protect=[0], fix_embed_dim="whole")
    assert set(stairs["sizes"][:, 0]) == {TINY.embed_dim}
    first = TINY.blocks[0]
    assert {tuple(row) for row in stairs["sizes"][:, 1:5].tolist()} == {
        (first.num_heads, first.qk_dim, first.v_dim, first.mlp_dim)
    }


@pytest.mark.parametrize(
    ("changes", "status", "kind", "field"),
    [
        ({"saliency": "nope"}, 422, "unknown-name", "saliency"),
        ({"target": "nope"}, 422, "unknown-name", "target"),
        ({"protect": [99]}, 422, "invalid-constraints", "protect"),
        ({"budget_ms": 3.0}, 422, "invalid-request", "budget_ms"),
    ],
)
def test_what_cannot_be_answered_is_a_problem(refused, changes, status, kind, field):
    refused("POST", "/v1/architectures/staircase", status, kind, field=field, json=ASKED | changes)


def test_code_is_that_of_the_stand_alone_export(client):
    answer = client.post("/v1/architectures/code", json=TINY.to_dict())
    assert answer.status_code == 200
    assert answer.text == standalone_source(TINY)


def test_code_of_no_architecture_is_a_problem(refused):
    body = TINY.to_dict() | {"patch_size": [700, 700]}
    refused("POST", "/v1/architectures/code", 422, "invalid-architecture", field="image_size", json=body)
