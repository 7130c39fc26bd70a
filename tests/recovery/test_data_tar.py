"""WebDatasets: the samples that WebDataset's own reader finds, each with its class; what is odd is named."""

import gzip
import shutil

import pytest
import torch

from recovery.data import DataError, load_dataset
from tests.recovery.data_places import ARCH, SPLITS, png, samples, shown, write_shard, write_shards


def contents(split):
    images, labels = next(iter(split.ordered(99)))
    return shown(images), labels.tolist()


def load(name, **arch):
    return load_dataset(name, ARCH.replace(**arch))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file open
def test_the_samples_are_those_that_webdataset_finds(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    odd = [
        ("a/b.c/0001.seg.png", png(20)),  # the extension is all after the first dot of the name
        ("a/b.c/0001.png", png(1)),
        ("a/b.c/0001.cls", b" 1\n"),
        ("0002.cls", b"2"),
        ("0002.PNG", png(2)),
        ("readme", b"not of any sample"),
        (".hidden", b"nor this"),
        ("./0003.png", png(3)),
        ("./0003.json", b"{}"),
        ("./0003.cls", b"0"),
    ]
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", odd)
    found = webdataset.WebDataset(str(tmp_path / "train.tar"), shardshuffle=False, empty_check=False)
    expected = [(sample["__key__"], sample["png"], int(sample["cls"])) for sample in found]
    pictures = load(f"wds:{tmp_path}").train.pictures
    ours = [(key, pictures.read(i), int(pictures.labels[i])) for i, key in enumerate(pictures.keys)]
    assert ours == expected
    assert [key for key, *_ in ours] == ["a/b.c/0001", "0002", "./0003"]


def test_shards_belong_to_the_split_that_a_word_of_their_path_names(tmp_path):
    write_shards(tmp_path)
    for folder in ("train", "test", "validation"):  # words of folders count too
        (tmp_path / "in" / folder).mkdir(parents=True)
    shutil.copy(tmp_path / "pets-train-001.tar", tmp_path / "in" / "train" / "0.tar")
    shutil.copy(tmp_path / "pets-val-000.tar", tmp_path / "in" / "test" / "0.tar")
    shutil.copy(tmp_path / "pets-train-000.tar", tmp_path / "in" / "validation" / "constraints.tar")
    data = load(f"wds:{tmp_path / 'in'}")
    assert contents(data.train)[0] == list(range(9, 15))
    assert contents(data.test)[0] == list(range(9))  # validation goes before test
    assert contents(load(f"wds:{tmp_path / 'in'},val=test").test)[0] == list(SPLITS["val"])


def test_a_pattern_chooses_shards(tmp_path):
    write_shards(tmp_path / "train set")  # the word counts below the first wildcard alone
    for pattern in ("pets-*-000.tar", "pets-*-{000..000}.tar", "*-0?0.tar"):
        data = load(f"wds:{tmp_path / 'train set' / pattern}")
        assert contents(data.train)[0] == list(range(9))
        assert contents(data.test)[0] == list(SPLITS["val"])
    assert len(load(f"wds:{tmp_path / 'train set' / 'pets-*-{000..001}.tar'}").train) == 15


def test_a_shard_missing_from_a_range_is_named(tmp_path):
    write_shards(tmp_path)
    with pytest.raises(DataError, match=r"no shard .*pets-\*-002\.tar; needed is a folder with"):
        load(f"wds:{tmp_path / 'pets-*-{000..003}.tar'}")


def test_image_and_label_may_have_other_extensions(tmp_path):
    files = [("0.seg.png", png(7)), ("0.png", png(1)), ("0.cls", b"1"), ("0.breed", b"2")]
    for split in ("fit", "val"):
        write_shard(tmp_path / f"{split}.tar", files)
    assert contents(load(f"wds:{tmp_path},train=fit").train) == ([1], [1])
    assert contents(load(f"wds:{tmp_path},train=fit,image=seg.png,label=breed").train) == ([7], [2])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("7.txt", b"."), ("7.cls", b"1")], r"sample '7' of .*train\.tar has no image \(jpg, .*\), but txt, cls; say"),
        ([("7.png", b".")], r"sample '7' of .*train\.tar has no class in its \.cls, but ''"),
        ([("7.png", b"."), ("7.cls", b"cat")], r"sample '7' .* has no class in its \.cls, but 'cat'"),
        ([("7.png", b"."), ("7.cls", b"9" * 30)], r"sample '7' .* has no class"),
        (
            [("7.png", b"."), ("7.cls", b"3")],
            r"sample '7' of .*train\.tar has label 3, outside \[0, 3\)",
        ),
        ([("7.png", b"."), ("7.cls", b"-1")], r"sample '7' of .*train\.tar has label -1, outside"),
        ([], r"train\.tar holds no samples"),
    ],
)
def test_samples_without_an_image_or_a_class_are_named(tmp_path, files, message):
    write_shard(tmp_path / "train.tar", files)
    write_shard(tmp_path / "val.tar", samples(range(2)))
    with pytest.raises(DataError, match=message):
        load(f"wds:{tmp_path}")


def test_a_damaged_image_is_named_by_sample_and_shard(tmp_path):
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", [*samples(range(2)), ("9.png", b"nothing"), ("9.cls", b"0")])
    with pytest.raises(DataError, match=r"sample '9' of .*train\.tar is no image of a known format"):
        list(load(f"wds:{tmp_path}").train.ordered(3))


@pytest.mark.parametrize("damage", [gzip.compress, lambda content: content[: len(content) // 2], lambda content: b"?"])
def test_files_that_are_no_whole_tar_files_are_named(tmp_path, damage):
    write_shards(tmp_path)
    shard = tmp_path / "pets-train-001.tar"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(DataError, match=r"pets-train-001\.tar cannot be read as a tar file \(uncompressed\)"):
        load(f"wds:{tmp_path}")


def test_places_without_shards_of_a_split_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no shard .*\*\.tar; needed is a folder with \.tar files"):
        load(f"wds:{tmp_path}")
    write_shards(tmp_path)
    with pytest.raises(DataError, match=r"no shard of .* is called fit; there are pets-train-000\.tar, pets"):
        load(f"wds:{tmp_path},train=fit")
    with pytest.raises(DataError, match=r"no shard of .* is called validation or val or valid or test"):
        load(f"wds:{tmp_path}/*train*")
    with pytest.raises(DataError, match=r"pets-train-000\.tar is called both train and pets"):
        load(f"wds:{tmp_path},val=pets")


def test_the_fingerprint_changes_with_samples_and_not_with_the_place_or_the_shards(tmp_path):
    first = load(write_shards(tmp_path / "one")).fingerprint
    assert load(write_shards(tmp_path / "two")).fingerprint == first
    write_shard(tmp_path / "two" / "pets-train-000.tar", samples(range(15)))
    (tmp_path / "two" / "pets-train-001.tar").unlink()
    assert load(f"wds:{tmp_path / 'two'}").fingerprint == first
    write_shard(tmp_path / "two" / "pets-train-000.tar", samples(range(14)))
    assert load(f"wds:{tmp_path / 'two'}").fingerprint != first


def test_the_number_of_classes_is_the_models(tmp_path):
    data = load(write_shards(tmp_path), num_classes=7)
    assert data.num_classes == 7
    assert data.train.pictures.labels.dtype == torch.int64
