"""A stored frontier answers as before, for what it was made for alone; what is no whole frontier is one clear error."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latency.analytic import MacsModel
from latency.devices import calibrations, device_model
from search.constraints import Constraints
from search.errors import FrontierError
from search.frontier import Frontier, Staircase
from search.frontier_storage import load_frontier, save_frontier
from search.saliency import Saliency, save_saliency
from tests.cases import CLASS_TOKEN
from tests.reference import monotone_table, random_saliency, random_table
from vit.architecture import BlockShape, Unit

ARCH = CLASS_TOKEN.replace(embed_dim=12, blocks=(BlockShape(2, 4, 5, 16), BlockShape(3, 6, 2, 18)))
IN_STEPS = Constraints(multiples={Unit.EMBED: 4, Unit.QK: 2, Unit.V: 2})
DEVICE = min(calibrations())
LATENCIES = {
    "table": lambda arch: monotone_table(0, arch=arch),
    "macs": MacsModel,
    "device": lambda arch: device_model(DEVICE, arch, 8),
}


@pytest.fixture
def stored(tmp_path):
    """A frontier and its file."""
    frontier = Frontier(random_saliency(ARCH, 0), monotone_table(0, arch=ARCH), IN_STEPS)
    path = tmp_path / "new" / "frontier.safetensors"
    save_frontier(frontier, path)
    return frontier, path


def load(path, **other):
    made_for = {"saliency": random_saliency(ARCH, 0), "latency": monotone_table(0, arch=ARCH), "constraints": IN_STEPS}
    return load_frontier(path, **made_for | other)


@pytest.mark.parametrize("kind", LATENCIES)
@pytest.mark.parametrize("constraints", [IN_STEPS, Constraints(fix_embed_dim="whole", protect=(1,))], ids=str)
def test_it_answers_as_before(tmp_path, kind, constraints):
    saliency, path = random_saliency(ARCH, 1), tmp_path / "f.safetensors"
    frontier = Frontier(saliency, LATENCIES[kind](ARCH), constraints)
    save_frontier(frontier, path)
    again = load_frontier(path, saliency, LATENCIES[kind](ARCH), constraints)
    assert (again.smallest_ms, again.full_ms) == (frontier.smallest_ms, frontier.full_ms)
    for budget in np.linspace(frontier.smallest_ms, frontier.full_ms, 30):
        assert again.best(budget) == frontier.best(budget)


def test_it_is_read_after_its_saliency_went_through_a_file(stored, tmp_path):
    from search.saliency import load_saliency

    save_saliency(random_saliency(ARCH, 0), tmp_path / "s.safetensors")
    assert load(stored[1], saliency=load_saliency(tmp_path / "s.safetensors"))


def changed(saliency):
    group, vector = next(iter(saliency.values.items()))
    values = {**saliency.values, group: np.nextafter(vector, 9)}
    return Saliency(saliency.arch, values, saliency.criterion, saliency.model, saliency.data, saliency.num_batches)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"saliency": changed(random_saliency(ARCH, 0))}, "another saliency"),
        ({"latency": random_table(0, arch=ARCH)}, "another table"),
        ({"latency": MacsModel(ARCH)}, "another table"),
        ({"constraints": Constraints()}, "other constraints"),
        ({"constraints": None}, "other constraints"),
    ],
    ids=["saliency", "table", "target", "constraints", "no constraints"],
)
def test_it_is_refused_for_anything_else(stored, other, says):
    with pytest.raises(FrontierError, match=f"was made for {says}; build the frontier again"):
        load(stored[1], **other)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FrontierError, match=r"no frontier at .*nowhere"):
        load(tmp_path / "nowhere.safetensors")


def test_another_format_is_refused(stored, tmp_path):
    save_saliency(random_saliency(ARCH, 0), tmp_path / "saliency.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name, says in {"saliency": "no vitfit frontier of version", "text": "no readable frontier"}.items():
        with pytest.raises(FrontierError, match=says):
            load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("seed", range(40))
def test_a_cut_or_changed_file_is_refused_or_says_the_same(stored, seed):
    frontier, path = stored
    draw, content = np.random.default_rng(seed), bytearray(path.read_bytes())
    if seed % 2:
        content = content[: draw.integers(len(content))]
    else:
        position = draw.integers(len(content))
        content[position] ^= 1 << draw.integers(8)
    path.write_bytes(content)
    try:
        again = load(path)
    except FrontierError:
        return
    assert again.best(again.full_ms) == frontier.best(frontier.full_ms)


@pytest.mark.parametrize("missing", ["ms", "bound", "sizes"])
def test_a_file_without_one_of_its_arrays_is_damaged(stored, missing):
    from safetensors import safe_open

    _, path = stored
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file({name: array for name, array in load_file(path).items() if name != missing}, path, metadata)
    with pytest.raises(FrontierError, match="is damaged"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ms": [2.0, 1.0]}, "ms rises"),
        ({"kept": [0.5, np.nan]}, "kept rises"),
        ({"bound": [0.1, 0.2]}, "no bound is below"),
        ({"ms": [1.0]}, "one finite entry an answer"),
        ({"sizes": [[4, 1, 1, 1, 0]] * 2}, "sizes are positive"),
    ],
)
def test_a_staircase_checks_itself(changes, says):
    good = {"ms": [1.0, 2.0], "kept": [0.5, 0.6], "bound": [0.5, 0.6], "sizes": [[4, 1, 1, 1, 1]] * 2}
    Staircase(**good)
    with pytest.raises(ValueError, match=says):
        Staircase(**good | changes)
