"""A library answers by name from the files that are there now, makes a frontier once, and survives bad files."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import api.library
from api.cache import Cache
from api.library import Library, SearchTooLargeError
from latency.analytic import MacsModel
from latency.errors import TableError, TargetError
from latency.storage import save_table
from search.constraints import Constraints
from search.errors import SaliencyError
from search.frontier import Frontier
from search.saliency import Saliency, save_saliency
from tests.api.factories import MODELLED, TINY, TINY_TARGET, V100, tiny_table
from tests.reference import random_saliency
from vit.architecture import Unit
from vit.errors import UnknownNameError
from vit.groups import groups, size
from vit.presets import preset

TINY_SLUG = TINY_TARGET.slug


@pytest.fixture
def library(data_dir: Path) -> Library:
    return Library(data_dir)


@pytest.fixture
def built(monkeypatch) -> list[Frontier]:
    """Every frontier that a library builds, in order."""
    made: list[Frontier] = []

    class Counted(Frontier):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(api.library, "Frontier", Counted)
    return made


def test_tables_are_listed_with_target_kind_bounds_and_file(library):
    listed = [entry.to_dict() for entry in library.targets()]
    assert [(e["file"], e["target"], e["kind"]) for e in listed] == [
        ("testbed.parquet", TINY_SLUG, "measured"),
        ("v100.parquet", V100.slug, "modelled"),
    ]
    assert listed[0]["bounds"]["mlp_dim"] == [8, 32]
    assert listed[1]["provenance"]["quality"] == {"held_out_error": 0.04}
    json.dumps(listed)


def test_a_table_is_found_by_its_target_and_not_by_its_file(library):
    assert library.table(TINY_SLUG).target == TINY_TARGET
    with pytest.raises(UnknownNameError, match=f"known: macs, {TINY_SLUG}, {V100.slug}"):
        library.table("testbed")


def test_macs_needs_no_table(library):
    assert isinstance(library.latency_model("macs", TINY), MacsModel)
    assert library.latency_model(TINY_SLUG, TINY) is library.table(TINY_SLUG)


def test_an_absent_folder_is_an_empty_library(tmp_path):
    library = Library(tmp_path / "nowhere")
    assert (library.targets(), library.saliencies()) == ([], [])
    with pytest.raises(UnknownNameError, match="known: macs"):
        library.table("v100")
    with pytest.raises(UnknownNameError, match="none yet"):
        library.saliency("tiny")


@pytest.mark.parametrize(
    "name", ["../saliencies/tiny", "tiny.safetensors", "/etc/passwd", "", ".", "..", "tiny\0", "*"]
)
def test_a_name_never_becomes_a_path(library, data_dir, name):
    save_saliency(random_saliency(TINY, 1), data_dir / "outside.safetensors")
    for wanted in (name, "../outside"):
        with pytest.raises(UnknownNameError):
            library.saliency(wanted)
        with pytest.raises(UnknownNameError):
            library.table(wanted)


def damage(data_dir: Path) -> set[str]:
    tables = data_dir / "tables"
    whole = (tables / "testbed.parquet").read_bytes()
    (tables / "empty.parquet").write_bytes(b"")
    (tables / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tables / "noise.parquet").write_bytes(np.random.default_rng(0).bytes(4_000))
    (tables / "folder.parquet").mkdir()
    return {"empty.parquet", "cut.parquet", "noise.parquet", "folder.parquet"}


def test_files_that_cannot_be_read_are_listed_with_the_reason_and_break_nothing(library, data_dir):
    bad = damage(data_dir)
    listed = {entry.file: entry for entry in library.targets()}
    assert {file for file, entry in listed.items() if entry.error} == bad
    assert all(str(data_dir) not in (entry.error or "") for entry in listed.values())
    assert all(file in str(listed[file].error) for file in bad)
    assert library.table(TINY_SLUG).target == TINY_TARGET


@pytest.mark.parametrize("seed", range(20))
def test_a_table_with_flipped_bytes_is_read_or_reported(tmp_path, seed):
    path = tmp_path / "tables" / "t.parquet"
    save_table(tiny_table(), path)
    content, draw = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for position in draw.integers(0, len(content), 20):
        content[position] = draw.integers(0, 256)
    path.write_bytes(content)
    (entry,) = Library(tmp_path).targets()
    assert (entry.error is None) == (entry.table is not None)


def test_damaged_saliencies_are_listed_with_the_reason(library, data_dir):
    folder = data_dir / "saliencies"
    (folder / "noise.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    vectors = {str(g): np.ones(size(TINY, g)) for g in groups(TINY)}
    for name, changes in {"missing": {"criterion": ...}, "typed": {"num_batches": "many"}}.items():
        document = {**random_saliency(TINY, 0).document(), **changes}
        document = {k: v for k, v in document.items() if v is not ...}
        metadata = {"format": "vitfit-saliency", "version": "1", "document": json.dumps(document)}
        save_file(vectors, folder / f"{name}.safetensors", metadata)
    errors = {entry.name: entry.error for entry in library.saliencies()}
    assert errors.pop("tiny") is None
    assert set(errors) == {"noise", "missing", "typed"}
    assert all(errors.values())
    with pytest.raises(SaliencyError, match="noise"):
        library.saliency("noise")


@pytest.mark.parametrize("bad", [{"versions": ["1.0"]}, {"quality": {"error": "low"}}, {"device": 3}, {"method": None}])
def test_evidence_that_could_not_be_shown_makes_no_table(bad):
    with pytest.raises(TableError, match=next(iter(bad))):
        replace(MODELLED, **bad)


def test_hidden_and_foreign_files_are_left_alone(library, data_dir):
    (data_dir / "tables" / ".half-written.parquet").write_bytes(b"x")
    (data_dir / "tables" / "README.md").write_text("hello")
    (data_dir / "tables" / "gone.parquet").symlink_to(data_dir / "nowhere")
    assert {entry.file for entry in library.targets()} == {"testbed.parquet", "v100.parquet"}


def test_the_table_with_the_best_evidence_answers_then_the_newest(library, data_dir):
    modelled = replace(MODELLED, created_at="2030-01-01T00:00:00+00:00")
    newer = replace(tiny_table().provenance, created_at="2027-01-01T00:00:00+00:00")
    save_table(tiny_table(modelled), data_dir / "tables" / "a.parquet")
    assert library.find_table(TINY_SLUG)[1] == "testbed.parquet"
    save_table(tiny_table(newer), data_dir / "tables" / "b.parquet")
    assert library.find_table(TINY_SLUG)[1] == "b.parquet"
    errors = {entry.file: entry.error for entry in library.targets() if entry.error}
    assert set(errors) == {"a.parquet", "testbed.parquet"}
    assert "b.parquet" in errors["a.parquet"]


def test_a_frontier_is_built_once_and_again_when_a_file_holds_something_else(library, data_dir, built):
    first = library.frontier("tiny", TINY_SLUG)
    assert library.frontier("tiny", TINY_SLUG, Constraints()) is first
    assert library.frontier("tiny", TINY_SLUG, Constraints(multiples={Unit.MLP: 8})) is first, "8 is the default"
    assert library.frontier("tiny", TINY_SLUG, Constraints(multiples={Unit.MLP: 16})) is not first
    assert library.frontier("tiny", "macs") is not first
    assert len(built) == 3
    save_saliency(random_saliency(TINY, 1), data_dir / "saliencies" / "tiny.safetensors")
    assert library.frontier("tiny", TINY_SLUG) is not first
    assert len(built) == 4
    table = tiny_table()
    save_table(replace(table, block_ms=2 * table.block_ms), data_dir / "tables" / "testbed.parquet")
    assert library.frontier("tiny", TINY_SLUG).full_ms > first.full_ms
    assert len(built) == 5


def test_a_library_that_is_opened_again_reads_its_frontiers(data_dir, built):
    constraints = Constraints(minimum={Unit.MLP: 16})
    first = Library(data_dir).frontier("tiny", TINY_SLUG, constraints)
    os.utime(data_dir / "tables" / "testbed.parquet", ns=(1, 1))  # another file, the same numbers
    again = Library(data_dir).frontier("tiny", TINY_SLUG, constraints)
    assert len(built) == 1
    for budget in np.linspace(first.smallest_ms, first.full_ms, 20):
        assert again.best(budget) == first.best(budget)


@pytest.mark.parametrize("content", [b"", b"x", bytes(200)], ids=["empty", "short", "zeros"])
def test_a_damaged_frontier_is_built_again_and_replaced(data_dir, built, content):
    Library(data_dir).frontier("tiny", TINY_SLUG)
    (path,) = (data_dir / "frontiers").iterdir()
    path.write_bytes(content)
    for _ in range(2):
        Library(data_dir).frontier("tiny", TINY_SLUG)
    assert len(built) == 2


def test_the_frontiers_on_disk_that_were_used_longest_ago_go_first(data_dir, built):
    library = Library(data_dir, max_frontiers=1, max_frontier_files=2)
    for step in (4, 8, 4, 16, 4, 8):  # 16 pushes 8 out, which was used before 4
        library.frontier("tiny", TINY_SLUG, Constraints(multiples={Unit.MLP: step}))
    assert len(built) == 4
    assert len(list((data_dir / "frontiers").iterdir())) == 2


def test_a_library_that_cannot_be_written_answers_all_the_same(data_dir, built):
    (data_dir / "frontiers").write_text("no folder")
    for _ in range(2):
        assert Library(data_dir).frontier("tiny", TINY_SLUG).full_ms > 0
    assert len(built) == 2


def test_a_frontier_answers_as_one_built_by_hand(library):
    by_hand = Frontier(random_saliency(TINY, 0), tiny_table())
    budget = by_hand.full_ms * 0.8
    assert library.frontier("tiny", TINY_SLUG).best(budget) == by_hand.best(budget)


def test_many_threads_build_a_frontier_once(library, built):
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda _: library.frontier("tiny", TINY_SLUG), range(64)))
    assert len(built) == 1
    assert all(frontier is built[0] for frontier in found)


def test_the_library_keeps_as_many_frontiers_as_it_may(data_dir, built):
    library = Library(data_dir, max_frontiers=2, max_frontier_files=0)
    for step in (4, 8, 16, 8, 4):
        library.frontier("tiny", TINY_SLUG, Constraints(multiples={Unit.MLP: step}))
    assert len(built) == 4, "16 pushed 4 out, 8 was still there"


def test_a_search_that_would_weigh_too_much_is_refused_before_it_starts(data_dir, built):
    for limits in ({"max_block_choices": 15}, {"max_search_work": 15}):
        with pytest.raises(SearchTooLargeError, match="larger multiples"):
            Library(data_dir, **limits).frontier("tiny", TINY_SLUG, Constraints(multiples=dict.fromkeys(Unit, 1)))
    assert not built


def test_a_frontier_needs_a_signal_and_a_table_of_its_tokens(library, data_dir):
    silent = Saliency(TINY, {g: np.zeros(size(TINY, g)) for g in groups(TINY)}, "gates", "", "", 1)
    save_saliency(silent, data_dir / "saliencies" / "silent.safetensors")
    with pytest.raises(SaliencyError, match="zero everywhere"):
        library.frontier("silent", TINY_SLUG)
    with pytest.raises(TargetError, match="197 tokens"):
        library.frontier("tiny", V100.slug)


def test_a_cache_forgets_what_was_used_longest_ago():
    cache: Cache[int, int] = Cache(2)
    made = []

    def get(key: int) -> int:
        return cache.get(key, lambda: made.append(key) or -key)

    assert [get(k) for k in (1, 2, 1, 3, 1, 2)] == [-1, -2, -1, -3, -1, -2]
    assert made == [1, 2, 3, 2]
    assert len(cache) == 2


def test_peeking_makes_nothing_and_counts_as_a_use():
    cache: Cache[int, int] = Cache(2)
    assert cache.peek(1) is None
    for key in (1, 2):
        cache.get(key, lambda key=key: 10 * key)
    assert cache.peek(1) == 10
    cache.get(3, lambda: 30)
    assert (cache.peek(1), cache.peek(2), cache.peek(3)) == (10, None, 30)


def test_a_frontier_is_at_hand_from_when_it_was_built_until_its_table_changes(library, data_dir, built):
    assert library.frontier_at_hand("tiny", TINY_SLUG) is None
    frontier = library.frontier("tiny", TINY_SLUG)
    assert library.frontier_at_hand("tiny", TINY_SLUG) is frontier
    assert library.frontier_at_hand("tiny", TINY_SLUG, Constraints(multiples={Unit.MLP: 16})) is None
    with pytest.raises(UnknownNameError):
        library.frontier_at_hand("tiny", "nowhere")
    path = data_dir / "saliencies" / "tiny.safetensors"
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))
    assert library.frontier_at_hand("tiny", TINY_SLUG) is None


def test_a_cache_does_not_remember_a_failure():
    cache: Cache[str, int] = Cache(2)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 // 0)
    assert cache.get("a", lambda: 5) == 5


def test_those_who_wait_for_a_value_that_fails_hear_of_it():
    cache: Cache[str, int] = Cache(2)
    started, go = threading.Event(), threading.Event()

    def fail() -> int:
        started.set()
        go.wait(10)
        raise RuntimeError("no")

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(cache.get, "a", fail)
        assert started.wait(10)
        second = threads.submit(cache.get, "a", lambda: 1)
        go.set()
        assert isinstance(first.exception(10), RuntimeError)
        # The second came while the first was at work, or just after it had failed.
        assert isinstance(second.exception(10), RuntimeError) or second.result() == 1


def test_saliencies_are_listed_by_name_and_model(library):
    (entry,) = library.saliencies()
    assert (entry.name, entry.file, entry.error) == ("tiny", "tiny.safetensors", None)
    assert entry.saliency.arch == TINY != preset("deit-s")
