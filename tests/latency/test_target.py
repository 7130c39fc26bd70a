"""A target is five plain fields and one word made of them."""

import pytest

from latency.errors import TargetError
from latency.target import Target, device_slug

TARGET = Target("a100-80g", "eager", "fp32", 256, 197)


def test_the_slug_says_all_five_fields():
    assert TARGET.slug == "a100-80g-eager-fp32-b256-n197"


def test_a_target_survives_its_document():
    assert Target.from_dict(TARGET.to_dict()) == TARGET


@pytest.mark.parametrize("name", ["device", "runtime", "dtype"])
@pytest.mark.parametrize("value", ["", "A100", "a 100", "-a", "a/b", "a\n", "ä", 3, None])
def test_a_name_that_is_no_plain_word_is_refused(name, value):
    with pytest.raises(TargetError, match=f"target {name} must be lower-case letters"):
        Target(**{**TARGET.to_dict(), name: value})


@pytest.mark.parametrize("name", ["device", "runtime", "dtype"])
def test_a_name_that_is_too_long_for_a_file_is_refused(name):
    rest = TARGET.to_dict() | {name: ""}
    most = 120 - len("-".join(rest[field] for field in ("device", "runtime", "dtype")))
    longest = Target(**{**rest, name: "0" * most, "batch": 1_000_000, "tokens": 1_000_000})
    assert len(f".{longest.slug}-01234567.parquet".encode()) < 200, "with room for what a temporary name adds"
    with pytest.raises(TargetError, match="at most 120 characters together, got 121"):
        Target(**{**rest, name: "0" * (most + 1)})


@pytest.mark.parametrize("name", ["batch", "tokens"])
@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True, 1_000_001])
def test_a_count_that_is_no_whole_number_from_one_is_refused(name, value):
    with pytest.raises(TargetError, match=f"target {name} must be a whole number from 1"):
        Target(**{**TARGET.to_dict(), name: value})


@pytest.mark.parametrize("document", [None, [], "x", {}, {**TARGET.to_dict(), "colour": 1}])
def test_a_document_with_other_fields_is_refused(document):
    with pytest.raises(TargetError, match="a target has the fields device, runtime, dtype, batch, tokens"):
        Target.from_dict(document)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-r-xeon-r-cpu-2.20ghz"),
        ("Accelerator " * 20, ("accelerator-" * 20)[:80].strip("-")),
        ("", "unknown"),
        ("...", "unknown"),
        ("日本", "unknown"),
    ],
)
def test_a_devices_own_name_becomes_a_word_that_a_target_takes(name, slug):
    assert device_slug(name) == slug
    assert Target(slug, "eager", "fp32", 1, 1).device == slug
