"""`vitfit redistribute`, `rules` and `study`, and what a study's trials do."""

import json

import pytest

from api.profile_files import load_profile, own_profiles
from api.study_run import changed, evaluator_of
from latency.analytic import MacsModel
from latency.estimate import estimate
from search.profiles import NVIDIA, POSTER, PROFILES, own_profile
from search.redistribute import redistribute_within, revit
from search.saliency import save_saliency
from search.study_file import parse_study
from tests.api.factories import DIGITS, TINY, V100, fill, save_model
from tests.reference import random_saliency
from vit.architecture import Architecture, BlockShape
from vit.cost import macs, params
from vit.presets import preset

SIX = TINY.replace(blocks=(BlockShape(2, 8, 8, 32),) * 6, softmax_scale=None)


@pytest.fixture
def library(tmp_path, monkeypatch):
    root = fill(tmp_path / "library")
    monkeypatch.setenv("VITFIT_DATA_DIR", str(root))
    monkeypatch.delenv("VITFIT_DATABASE_URL", raising=False)
    return root


@pytest.fixture
def cli(run_cli, library):
    def run(*arguments):
        status, out, err = run_cli(*arguments)
        return (json.loads(out) if "--json" in arguments else out) if status == 0 else (status, err)

    return run


def test_an_architecture_is_redistributed_with_before_and_after(cli, tmp_path):
    path = tmp_path / "after.json"
    found = cli("redistribute", "deit-s", "-t", "macs", "-t", V100.slug, "-o", path, "--json")
    after = Architecture.from_json(path.read_text())
    assert found["before"]["id"] == preset("deit-s").id
    assert found["after"]["id"] == after.id
    assert found["after"]["macs"] == macs(after) <= macs(preset("deit-s"))
    assert found["after"]["params"] == params(after)
    assert set(found["after"]["latency_ms"]) == {"macs", V100.slug}
    for slug, ms in found["after"]["latency_ms"].items():
        assert ms <= found["before"]["latency_ms"][slug]
    wider = found["next_wider"]["latency_ms"]
    assert any(wider[slug] > found["before"]["latency_ms"][slug] for slug in wider)
    text = cli("redistribute", "deit-s", "-t", "macs")
    assert "before" in text
    assert "the next wider" in text


def test_several_targets_and_other_profiles(cli):
    found = cli("redistribute", "-t", "macs=2500", "-t", f"{V100.slug}=120", "-p", "poster", "--json")
    from api.library import Library
    from api.queries import template_of
    from api.settings import Settings

    table = Library.of(Settings()).latency_model(V100.slug, preset("deit-s"))
    template = template_of(table)
    wanted = redistribute_within([(MacsModel(template), 2500), (table, 120)], template, 12, POSTER)
    assert Architecture.from_dict(found["architecture"]) == wanted
    assert [one["target"] for one in found["targets"]] == ["macs", V100.slug]
    assert found["profile"] == "poster"


def test_what_was_found_is_remembered_where_it_is_asked_for(cli):
    found = cli("redistribute", "--embed-dim", 384, "--remember", "mine", "--json")
    cut = cli("search", "-s", "tiny", "-t", "macs", "--speedup", 1.3, "--remember", "cut", "--json")
    known = {one["name"]: one for one in cli("catalogue", "list", "--limit", 200, "--json")}
    assert (known["mine"]["architecture_id"], known["mine"]["kind"]) == (found["id"], "redistributed")
    assert (known["cut"]["architecture_id"], known["cut"]["kind"]) == (cut["id"], "frontier")
    assert known["cut"]["parent"] == TINY.id
    assert cli("catalogue", "list", "--from", TINY.id, "--json") == cli("catalogue", "list", "--name", "cut", "--json")


def test_rules_are_learned_stored_shown_drawn_and_used(cli, library, tmp_path):
    for seed in range(3):
        save_saliency(random_saliency(SIX, seed), library / "saliencies" / f"six-{seed}.safetensors")
    svg = tmp_path / "mine.svg"
    given = [word for seed in range(3) for word in ("-s", f"six-{seed}")]
    found = cli("rules", "learn", "mine", *given, "--share", 0.7, "--share", 0.5, "--svg", svg, "--json")
    assert found["trends"]["groups"] == [2, 2, 2]
    assert own_profiles(library)["mine"].to_dict() == found["profile"]
    assert svg.read_text().startswith("<svg")
    assert "mine" in svg.read_text()
    assert "mine" in cli("rules", "list")
    (shown,) = cli("rules", "show", "mine", "--embed-dim", 16, "--depth", 6, "--json")
    assert shown["trends"] == found["trends"]
    arch = cli("redistribute", "--embed-dim", 16, "--depth", 6, "-p", "mine", "--json")
    assert Architecture.from_dict(arch["architecture"]).blocks == own_profiles(library)["mine"].blocks(16, 6)
    assert "no trend" in cli("rules", "learn", "again", *given)  # random saliency


def test_pruned_models_are_grouped_by_the_model_that_they_were_cut_from(cli, tmp_path):
    words = []
    for group in range(2):
        for width in (8, 16):
            path = tmp_path / f"{group}-{width}.json"
            path.write_text(SIX.replace(embed_dim=width).to_json())
            words += ["--pruned", f"seed{group}={path}"]
    found = cli("rules", "learn", "flat", *words, "--json")
    assert found["trends"]["groups"] == [2, 2]
    assert not any(trend["is_there"] for trend in found["trends"]["depth"].values())


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["redistribute", "deit-s"], 2, "give --target"),
        (["redistribute", "deit-s", "-t", "macs", "--embed-dim", 8], 2, "no budget or width"),
        (["redistribute", "-t", "macs=1", "--budget-ms", 3], 2, "each target has its own budget"),
        (["redistribute", "-t", "macs=1"], 1, "the nearest above takes"),
        (["redistribute", "--embed-dim", 384, "-p", "x"], 1, "unknown profile 'x'; known: nvidia, poster, deit"),
        (["redistribute", "--embed-dim", 384, "-p", "none.json"], 1, "no profile at"),
        (["rules", "learn", "nvidia", "--pruned", "a=deit-s"], 1, "comes with vitfit"),
        (["rules", "learn", "x"], 1, "give at least one for every group"),
        (["rules", "learn", "x", "--pruned", "deit-s"], 2, "takes GROUP=ARCH"),
        (["rules", "show", *"abcde"], 2, "at most 4"),
        (["study", "run", "none.yaml"], 1, "no study file at"),
        (["study", "show", "x"], 1, "there is no study 'x'"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_error(cli, arguments, status, says):
    found = cli(*arguments)
    assert found[0] == status, found
    assert says in " ".join(found[1].replace("│", " ").split())


def test_files_that_are_no_profiles_are_listed_with_the_reason(cli, library, tmp_path):
    folder = library / "profiles"
    folder.mkdir()
    (folder / "bad.json").write_text("{")
    assert "bad.json" in cli("rules", "list")
    good = tmp_path / "good.json"
    good.write_text(own_profile("good", {"mlp_dim": [1] * 12}).to_json())
    assert load_profile(good).name == "good"


# --- studies -----------------------------------------------------------------------------------------------------


SHAPES = """
study: shapes
make: redistribute
target: macs
objectives: [params, latency_ms]
constraints: {params: {at_least: 3000000}}
trials: 30
sampler: nsga2
population: 10
space: {profile: [nvidia, poster], embed_dim: {from: 104, to: 256, step: 8}, mlp_dim.scale: {from: 0.5, to: 2}}
"""


def test_a_study_runs_goes_on_and_lands_in_the_catalogue(cli, tmp_path):
    path = tmp_path / "shapes.yaml"
    path.write_text(SHAPES)
    assert "30 trials" in cli("study", "run", path, "--check")
    found = cli("study", "run", path, "--json")
    assert found["states"]["complete"] == 30
    for one in found["best"]:
        arch = Architecture.from_dict(one["architecture"])
        assert one["metrics"]["params"] == params(arch) >= 3_000_000
        assert one["metrics"]["latency_ms"] == pytest.approx(macs(arch) / 1e6)
    path.write_text(SHAPES.replace("trials: 30", "trials: 40"))
    assert cli("study", "run", path, "--json")["states"]["complete"] == 40
    assert [one["study"] for one in cli("study", "list", "--json")] == ["shapes"]
    shown = cli("study", "show", "shapes", "--json")
    entries = cli("catalogue", "list", "--kind", "study", "--json")
    assert {one["architecture_id"] for one in entries} >= {one["architecture_id"] for one in shown["best"]}
    assert all(one["accuracies"] == [] for one in entries)  # nothing was trained, nothing is made up
    path.write_text(SHAPES.replace("nsga2", "tpe"))
    status, err = cli("study", "run", path)
    assert status == 1
    assert "begun with another sampler" in err


def test_factors_change_a_profile_by_thirds():
    profile = changed(POSTER, {"mlp_dim.scale": 0.5, "qk_dim.first": 2.0, "qk_dim.last": 3.0}, 12)
    plain, found = POSTER.blocks(200, 12), profile.blocks(200, 12)
    assert [b.mlp_dim * 2 for b in found] == [b.mlp_dim for b in plain]
    factors = [2] * 4 + [1] * 4 + [3] * 4
    assert [b.qk_dim for b in found] == [factor * b.qk_dim for factor, b in zip(factors, plain, strict=True)]
    assert [b.num_heads for b in found] == [b.num_heads for b in plain]
    assert changed(NVIDIA, {}, 12) == NVIDIA
    assert len(changed(NVIDIA, {"mlp_dim.first": 2.0}, 8).blocks(200, 8)) == 8


TRAINED = """
study: trained
make: redistribute
target: macs
objectives: [accuracy]
trials: 2
data: digits
space: {profile: deit, depth: 6, embed_dim: [64, 72]}
train: {steps: 2, batch_size: 16}
"""


def test_trials_train_and_are_judged_by_images_held_out(cli, library, tmp_path):
    path = tmp_path / "trained.yaml"
    path.write_text(TRAINED)
    found = cli("study", "run", path, "--json")
    assert found["states"]["complete"] + found["states"]["pruned"] == 2
    assert 0 <= found["best"][0]["metrics"]["accuracy"] <= 1
    (entry,) = cli("catalogue", "list", "--kind", "study", "--json")
    (figure,) = entry["accuracies"]
    assert figure["data"] == "digits (training images held out)"
    assert (figure["evidence"], figure["seeds"]) == ("measured", [0])
    assert json.loads(figure["recipe"])["train.steps"] == 2

    from api.library import Library
    from api.settings import Settings
    from recovery.data import load_dataset

    evaluator = evaluator_of(parse_study(TRAINED), Library.of(Settings()))
    whole = load_dataset("digits")
    assert len(evaluator.data.train) + len(evaluator.data.test) == len(whole.train)


def test_a_study_compresses_a_model_by_several_criteria_and_bases(cli, library, tmp_path):
    save_model(DIGITS, library / "models" / "dense.safetensors")
    path = tmp_path / "compress.yaml"
    path.write_text("""
study: criteria
make: compress
model: dense.safetensors
data: digits
target: macs
objectives: [accuracy, macs]
constraints: {kept: {at_least: 0.01}}
trials: 4
sampler: random
space: {criterion: [fisher, magnitude], basis: [true, false], refit: [true, false], calibration: 32, share: [0.6, 0.8]}
""")
    found = cli("study", "run", path, "--json")
    assert sum(found["states"].values()) == 4
    assert found["states"]["complete"] == 4
    latency = MacsModel(DIGITS)
    full = estimate(latency, DIGITS).latency_ms
    for one in found["best"]:
        assert one["metrics"]["latency_ms"] <= one["values"]["share"] * full
        assert 0.01 <= one["metrics"]["kept"] <= 1


def test_a_study_of_what_is_not_there_is_one_clear_error(cli, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(SHAPES.replace("target: macs", "target: a100"))
    assert "unknown target 'a100'" in cli("study", "run", path)[1]
    path.write_text(TRAINED.replace("digits", "pictures"))
    assert "unknown data 'pictures'" in cli("study", "run", path)[1]
    assert set(PROFILES) == {"nvidia", "poster", "deit"}
    assert revit(384) == preset("revit-s")
