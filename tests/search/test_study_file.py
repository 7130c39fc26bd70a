"""Study files: what they mean, and errors that name line and key."""

import json

import pytest

from search.study_file import Limit, OneOf, Range, StudyFileError, load_study, parse_study

GOOD = """\
study: digits-shapes
make: redistribute
target: macs
objectives: [accuracy, latency_ms]
constraints:
  params: {at_most: 2e6}
  accuracy: {at_least: 0.5}
trials: 20
sampler: nsga2
data: digits
space:
  profile: [nvidia, poster]
  embed_dim: {from: 104, to: 256, step: 8}
  depth: 12
  mlp_dim.scale: {from: 0.5, to: 2, log: true}
train:
  steps: 200
  lr: {from: 3e-4, to: 3e-3, log: true}
"""


def test_a_file_is_read_as_it_is_meant():
    spec = parse_study(GOOD)
    assert spec.varied == {
        "profile": OneOf(("nvidia", "poster")),
        "embed_dim": Range(104, 256, 8, False, True),
        "mlp_dim.scale": Range(0.5, 2.0, None, True, False),
        "train.lr": Range(3e-4, 3e-3, None, True, False),
    }
    assert spec.fixed == {"depth": 12, "train.steps": 200}
    assert spec.constraints == (Limit("params", at_most=2e6), Limit("accuracy", at_least=0.5))
    assert spec.metrics == ("accuracy", "latency_ms", "params")
    assert (spec.trains, spec.in_memory, spec.trials) == (True, False, 20)


def test_json_is_the_same_file(tmp_path):
    document = {
        "study": "x",
        "make": "redistribute",
        "target": "macs",
        "objectives": ["macs"],
        "space": {"embed_dim": [104, 112], "profile": "poster"},
    }
    path = tmp_path / "study.json"
    path.write_text(json.dumps(document, indent="\t"))
    spec = load_study(path)
    assert spec.varied == {"embed_dim": OneOf((104, 112))}
    assert spec.in_memory


def test_limits_say_by_how_much_they_are_missed():
    assert Limit("params", at_most=200.0).excess(300.0) == 0.5
    assert Limit("accuracy", at_least=0.5).excess(0.75) == -0.5


def test_the_number_of_trials_alone_may_change():
    assert parse_study(GOOD.replace("trials: 20", "trials: 90")).identity() == parse_study(GOOD).identity()
    assert parse_study(GOOD.replace("seed", "seed")).identity() != parse_study(GOOD + "seed: 3\n").identity()


def changed(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        (changed("sampler: nsga2", "sampl: nsga2"), 9, "sampl", "unknown key; known are study, make"),
        (changed("  depth: 12", "  dept: 12"), 14, "space.dept", "unknown key; known are profile, embed_dim"),
        (changed("  steps: 200", "  step: 200"), 17, "train.step", "unknown key"),
        (changed("to: 256, step: 8", "to: 104"), 13, "space.embed_dim", "is an empty range: from 104 to 104"),
        (changed("from: 104, to: 256", "from: 256, to: 104"), 13, "space.embed_dim", "is an empty range"),
        (changed("[nvidia, poster]", "[]"), 12, "space.profile", "is an empty list"),
        (changed("[nvidia, poster]", "[nvidia, nvidia]"), 12, "space.profile", "names a value twice"),
        (changed("from: 104", "from: wide"), 13, "space.embed_dim.from", "must be a whole number, got 'wide'"),
        (changed("from: 104", "from: 104.5"), 13, "space.embed_dim.from", "must be a whole number"),
        (changed("from: 0.5, to: 2", "from: 0.5"), 15, "space.mlp_dim.scale", "a range needs to"),
        (changed("from: 0.5", "from: 0"), 15, "space.mlp_dim.scale.from", "must be from 0.05 to 20, got 0"),
        (changed("log: true}\ntrain", "log: true, step: 0.1}\ntrain"), 15, "space.mlp_dim.scale", "has no step"),
        (changed("step: 8", "step: 900"), 13, "space.embed_dim.step", "fit the range"),
        (changed("data: digits\n", ""), 4, "objectives", "accuracy needs data"),
        (
            changed("train:\n  steps: 200\n  lr: {from: 3e-4, to: 3e-3, log: true}\n", ""),
            4,
            "objectives",
            "needs training",
        ),
        (changed("[accuracy, latency_ms]", "[]"), 4, "objectives", "is empty"),
        (changed("[accuracy, latency_ms]", "[speed]"), 4, "objectives[0]", "must be one of accuracy, kept"),
        (changed("[accuracy, latency_ms]", "[kept]"), 4, "objectives[0]", "share of saliency that compress keeps"),
        (changed("[accuracy, latency_ms]", "[macs, macs]"), 4, "objectives[1]", "is named twice"),
        (changed("at_most: 2e6", "at_mots: 2e6"), 6, "constraints.params.at_mots", "unknown key; known are at_most"),
        (changed("at_most: 2e6", "at_most: many"), 6, "constraints.params.at_most", "must be a number"),
        (changed("{at_most: 2e6}", "{}"), 6, "constraints.params", "give at_most or at_least"),
        (changed("make: redistribute", "make: magic"), 2, "make", "must be one of redistribute, compress"),
        (changed("make: redistribute\n", ""), 1, "make", "is missing"),
        (changed("trials: 20", "trials: 0"), 8, "trials", "a whole number from 1"),
        (changed("trials: 20", "pruner: halving"), 8, "pruner", "pruners stop trials by one objective"),
        (
            changed("  embed_dim: {from: 104, to: 256, step: 8}\n", ""),
            11,
            "space",
            "exactly one of budget_ms and embed_dim",
        ),
        (changed("  steps: 200\n", ""), 16, "train", "needs steps"),
        (changed("study: digits-shapes", "study: x\nstudy: y"), 2, "study", "given twice, first in line 1"),
        (changed("trials: 20", "trials: [20"), 9, None, "not YAML or JSON"),
        ("", 1, None, "the file is empty"),
        ("- a\n- b\n", 1, None, "must be a mapping"),
        (GOOD + "model: [a]\n", 19, "model", "must be a single value"),
    ],
)
def test_a_mistake_is_named_by_line_and_key(text, line, key, says, tmp_path):
    with pytest.raises(StudyFileError) as caught:
        parse_study(text)
    assert says in str(caught.value)
    assert (caught.value.line, caught.value.key) == (line, key)
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(StudyFileError, match=f"^study.yaml:{line}: "):
        load_study(path)


@pytest.mark.parametrize(
    ("lines", "key", "says"),
    [
        ("objectives: [kept]\nspace: {share: [0.3, 0.5]}\n", "make", "compress needs a model"),
        ("objectives: [kept]\nmodel: m\nspace: {share: [0.3, 0.5]}\n", "make", "compress reads images"),
        (
            "objectives: [kept]\nmodel: m\ndata: d\nspace: {criterion: [gates, fisher]}\n",
            "space",
            "budget_ms and share",
        ),
        (
            "objectives: [kept]\nmodel: m\ndata: d\nspace: {share: 0.5, basis: [1, 2]}\n",
            "space.basis[0]",
            "true or false",
        ),
        (
            "objectives: [kept]\nmodel: m\ndata: d\nspace: {share: 0.5, criterion: {from: 1, to: 2}}\n",
            "space.criterion",
            "is no number",
        ),
        (
            "objectives: [kept]\nmodel: m\ndata: d\nspace: {share: 0.5, criterion: [gate]}\n",
            "space.criterion[0]",
            "must be one of gates",
        ),
        ("objectives: [kept]\nmodel: m\ndata: d\nspace: {share: 0.5}\n", "space", "nothing varies"),
        (
            "objectives: [kept]\nmodel: m\ndata: d\nspace: {share: [0.3, 0.5]}\ntrain: {steps: 5}\n",
            "train",
            "leave it out",
        ),
    ],
)
def test_what_compress_needs_is_asked_for(lines, key, says):
    with pytest.raises(StudyFileError) as caught:
        parse_study(f"study: x\nmake: compress\ntarget: macs\n{lines}")
    assert says in str(caught.value)
    assert caught.value.key == key


def test_no_file_and_no_text_are_said_to_be_none(tmp_path):
    with pytest.raises(StudyFileError, match="no study file at"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyFileError, match="is not text"):
        load_study(tmp_path / "binary.yaml")
