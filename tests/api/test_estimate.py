"""An estimate is the closed form of the table, block by block, for one architecture or thousands."""

import time

import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.schemas import ArchitectureBody
from api.settings import Settings
from latency.estimate import estimate
from tests.api.factories import TINY, TINY_TARGET, V100, block_ms, model_ms, outside_ms
from vit.architecture import Architecture, BlockShape
from vit.cost import macs, params
from vit.presets import PRESETS, preset

PATH = "/v1/latency/estimate"


def ask(client: TestClient, targets: list[str], *architectures: Architecture | str) -> dict:
    documents = [{"preset": a} if isinstance(a, str) else a.to_dict() for a in architectures]
    response = client.post(PATH, json={"targets": targets, "architectures": documents})
    assert response.status_code == 200, response.text
    return response.json()


def test_the_answer_is_the_closed_form(client):
    answer = ask(client, [TINY_TARGET.slug], TINY)
    (found,) = answer["architectures"]
    (times,) = found["estimates"]
    assert (found["id"], found["params"], found["macs"]) == (TINY.id, params(TINY), macs(TINY))
    assert times["latency_ms"] == pytest.approx(model_ms(TINY))
    assert times["block_ms"] == pytest.approx([block_ms(16, b) for b in TINY.blocks])
    assert times["outside_ms"] == pytest.approx(outside_ms(16))
    assert (times["target"], times["kind"], times["notes"]) == (TINY_TARGET.slug, "measured", [])


def test_modelled_numbers_say_so(client):
    answer = ask(client, [V100.slug], "deit-s")
    (evidence,) = answer["targets"]
    assert evidence["kind"] == evidence["provenance"]["kind"] == "modelled"
    assert answer["architectures"][0]["estimates"][0]["kind"] == "modelled"


def test_on_macs_milliseconds_are_millions_of_macs_whatever_the_geometry(client):
    archs = [*PRESETS.values(), TINY, TINY.replace(image_size=(32, 16)), preset("deit-t").replace(num_classes=10)]
    answer = ask(client, ["macs"], *archs)
    assert [a["estimates"][0]["latency_ms"] for a in answer["architectures"]] == pytest.approx(
        [macs(arch) / 1e6 for arch in archs]
    )
    assert answer["targets"][0]["unit"] == "million MACs"


def test_order_of_targets_and_architectures_is_kept(client):
    answer = ask(client, [V100.slug, "macs", V100.slug], "deit-b", "deit-t", "deit-b")
    names = ["deit-b", "deit-t", "deit-b"]
    assert [t["target"] for t in answer["targets"]] == [V100.slug, "macs", V100.slug]
    assert [a["id"] for a in answer["architectures"]] == [preset(name).id for name in names]
    for found, name in zip(answer["architectures"], names, strict=True):
        assert [e["target"] for e in found["estimates"]] == [V100.slug, "macs", V100.slug]
        assert found["estimates"][0]["latency_ms"] == pytest.approx(model_ms(preset(name)))


def test_architectures_of_many_depths_in_one_request_are_each_what_they_are_alone(app: FastAPI, client):
    draw = np.random.default_rng(0)
    archs = []
    for depth in (1, 5, 2, 12, 1):
        sizes = draw.integers([1, 8, 8, 16], [13, 65, 65, 3073], (depth, 4)).tolist()
        blocks = tuple(BlockShape(*row) for row in sizes)
        archs.append(preset("deit-s").replace(embed_dim=int(draw.integers(64, 769)), blocks=blocks))
    table = app.state.library.table(V100.slug)
    for arch, found in zip(archs, ask(client, [V100.slug], *archs)["architectures"], strict=True):
        alone = estimate(table, arch)
        assert found["estimates"][0]["latency_ms"] == pytest.approx(alone.latency_ms)
        assert found["estimates"][0]["block_ms"] == pytest.approx(alone.block_ms)
        assert len(found["estimates"][0]["block_ms"]) == arch.depth


def test_what_differs_from_what_was_timed_is_noted(client):
    arch = TINY.replace(norm="rms", num_classes=7)
    notes = ask(client, [TINY_TARGET.slug], arch)["architectures"][0]["estimates"][0]["notes"]
    assert len(notes) == 2
    assert "rms" in notes[0]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_and_its_document_are_one_architecture(client, name):
    by_name, by_document = ask(client, ["macs"], name, preset(name))["architectures"]
    assert by_name == by_document


def test_a_body_has_the_fields_and_defaults_of_an_architecture():
    least = {"image_size": 16, "patch_size": [8, 8], "in_chans": 3, "num_classes": 0, "embed_dim": 8}
    block = {"num_heads": 1, "qk_dim": 2, "v_dim": 3, "mlp_dim": 4}
    arch = Architecture.from_dict({**least, "blocks": [block]})
    assert ArchitectureBody.model_validate({**least, "blocks": [block]}).to_domain() == arch
    assert set(ArchitectureBody.model_fields) == set(arch.to_dict())


def test_a_thousand_architectures_take_no_seconds(client):
    ask(client, [V100.slug, "macs"], "deit-s")  # compiles the interpolation
    blocks = preset("deit-s").blocks
    archs = [preset("deit-s").replace(embed_dim=64 + i % 700, blocks=blocks) for i in range(1_000)]
    body = {"targets": [V100.slug, "macs"], "architectures": [arch.to_dict() for arch in archs]}
    start = time.process_time()  # not the wall clock: other work on the machine is none of ours
    response = client.post(PATH, json=body)
    assert time.process_time() - start < 2
    times = [a["estimates"][0]["latency_ms"] for a in response.json()["architectures"]]
    assert times == pytest.approx([model_ms(arch) for arch in archs])


def test_an_unknown_target_or_preset_is_named_with_what_is_known(refused):
    body = {"targets": ["macs", "v1000"], "architectures": [{"preset": "deit-s"}]}
    problem = refused("POST", PATH, 422, "unknown-name", field="targets[1]", says=("v1000", V100.slug), json=body)
    assert "/v1/targets" in problem["hint"]
    body = {"targets": ["macs"], "architectures": [{"preset": "deit-s"}, {"preset": "deit-x"}]}
    problem = refused(
        "POST", PATH, 422, "unknown-name", field="architectures[1].preset", says=("deit-x", "revit-s"), json=body
    )
    assert "/v1/presets" in problem["hint"]


@pytest.mark.parametrize("preset_name", [3, None, True, "", "x" * 201, ["deit-s"]])
def test_a_preset_is_a_short_text(refused, preset_name):
    body = {"targets": ["macs"], "architectures": [{"preset": preset_name}]}
    refused("POST", PATH, 422, "invalid-request", field="architectures[0].preset", says=("must be text",), json=body)


def test_an_architecture_is_a_preset_or_a_document_and_not_both(refused):
    body = {"targets": ["macs"], "architectures": [{"preset": "deit-s", "embed_dim": 8}]}
    refused(
        "POST", PATH, 422, "invalid-request", field="architectures[0].embed_dim", says=("fields are preset",), json=body
    )


def test_tokens_of_another_table_are_refused(refused):
    body = {"targets": [TINY_TARGET.slug], "architectures": [TINY.to_dict(), {"preset": "deit-s"}]}
    refused("POST", PATH, 422, "target-mismatch", field="architectures[1]", says=("for 5 tokens", "has 197"), json=body)


@pytest.mark.parametrize(
    ("embed_dim", "blocks", "field"),
    [
        (16, (BlockShape(2, 8, 8, 16), BlockShape(2, 80, 8, 16)), "blocks[1].qk_dim"),
        (16, (BlockShape(4, 8, 8, 16),), "blocks[0].num_heads"),
        (16, (BlockShape(1, 8, 8, 33),), "blocks[0].mlp_dim"),
        (4, (BlockShape(2, 8, 8, 16),), "embed_dim"),
    ],
)
def test_a_size_outside_the_grid_is_named_by_architecture_block_and_field(refused, embed_dim, blocks, field):
    outside = TINY.replace(embed_dim=embed_dim, blocks=blocks)
    body = {"targets": ["macs", TINY_TARGET.slug], "architectures": [TINY.to_dict(), outside.to_dict()]}
    refused("POST", PATH, 422, "outside-grid", field=f"architectures[1].{field}", says=(TINY_TARGET.slug,), json=body)


@pytest.mark.parametrize(("targets", "count", "field"), [(1, 4, "architectures"), (3, 1, "targets")])
def test_more_than_the_service_is_set_to_do_is_refused(data_dir, targets, count, field):
    client = TestClient(create_app(Settings(data_dir=data_dir, max_architectures=3, max_targets=2)))
    body = {"targets": ["macs"] * targets, "architectures": [{"preset": "deit-t"}] * count}
    response = client.post(PATH, json=body)
    assert response.status_code == 422
    assert response.json()["type"] == "/problems/limit"
    assert response.json()["field"] == field


def test_a_modelled_latency_says_what_it_may_be(client):
    answer = client.post(
        "/v1/latency/estimate", json={"targets": [V100.slug, "macs"], "architectures": [{"preset": "deit-s"}]}
    ).json()
    modelled, analytic = answer["architectures"][0]["estimates"]
    assert modelled["interval_ms"] == [0.95 * modelled["latency_ms"], 1.06 * modelled["latency_ms"]]
    assert answer["targets"][0]["provenance"]["interval"] == [0.95, 1.06]
    assert analytic["interval_ms"] is None


def test_components_of_blocks_come_where_they_are_asked_for(client):
    body = {"targets": [V100.slug, "macs"], "architectures": [{"preset": "deit-s"}, {"preset": "deit-t"}]}
    plain = client.post(PATH, json=body).json()
    assert all(e["components"] is None for a in plain["architectures"] for e in a["estimates"])
    answer = client.post(PATH, json=body | {"components": True}).json()
    for name, found, before in zip(("deit-s", "deit-t"), answer["architectures"], plain["architectures"], strict=True):
        table, analytic = (e.pop("components") for e in found["estimates"])
        assert [{**e, "components": None} for e in found["estimates"]] == before["estimates"]
        for index, b in enumerate(preset(name).blocks):
            # The table is affine: see the factories. Its smallest block has H 1, QK 8, V 8 and MLP 16.
            assert table["mlp_ms"][index] == pytest.approx(0.005 * (b.mlp_dim - 16))
            attn = 0.2 * (b.num_heads - 1) + 0.03 * (b.qk_dim - 8) + 0.02 * (b.v_dim - 8)
            assert table["attn_ms"][index] == pytest.approx(attn)
            assert table["rest_ms"][index] == pytest.approx(block_ms(preset(name).embed_dim, BlockShape(1, 8, 8, 16)))
            assert analytic["mlp_ms"][index] == 2 * 197 * preset(name).embed_dim * b.mlp_dim / 1e6
        assert (table["basis"], analytic["basis"]) == ("differences", "exact")
        assert "MLP 16" in table["method"]
        assert (table["qk_ms"], table["v_ms"], table["products_ms"]) == (None, None, None)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_components_is_true_or_false(refused, value):
    body = {"targets": ["macs"], "architectures": [{"preset": "deit-s"}], "components": value}
    refused("POST", PATH, 422, "invalid-request", field="components", says=(), json=body)
