"""A file is whole or not there, whatever goes wrong while it is written."""

import os
import stat
from pathlib import Path

import pytest

from vit.files import write_atomically, write_folder_atomically, write_text


def test_text_is_written_as_utf8_into_folders_that_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "name.json"
    write_text(path, "λ = 1\n")
    assert path.read_bytes() == "λ = 1\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_second_write_replaces_the_first_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "a long first text")
    write_text(path, "short")
    assert path.read_text() == "short"
    assert list(tmp_path.iterdir()) == [tmp_path / "file.txt"]


def test_the_writer_gets_another_path_in_the_same_folder_with_the_same_suffix(tmp_path):
    path, seen = tmp_path / "model.onnx", []

    def write(temporary: Path) -> None:
        assert not path.exists()
        seen.append(temporary)
        temporary.write_bytes(b"x")

    write_atomically(path, write)
    (temporary,) = seen
    assert temporary != path
    assert (temporary.parent, temporary.suffix) == (tmp_path, ".onnx")
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


def test_the_file_can_be_read_by_others(tmp_path):
    write_text(tmp_path / "file", "x")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_writer_that_fails_halfway_leaves_the_old_content_and_no_temporary_file(tmp_path, error, old):
    path = tmp_path / "file.txt"
    if old is not None:
        path.write_text(old)

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error("stop")

    with pytest.raises(error, match="stop"):
        write_atomically(path, write)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == ({} if old is None else {"file.txt": old})


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_stop_between_write_and_rename_leaves_the_old_content(tmp_path, monkeypatch, step, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def stop(*args: object) -> None:
        raise error("stop")

    monkeypatch.setattr(os, step, stop)
    with pytest.raises(error, match="stop"):
        write_text(path, "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file.txt": "old"}


def test_the_content_is_on_disk_before_the_name_changes(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        steps.append(("fsync", os.fstat(handle).st_size))
        fsync(handle)

    def watched_replace(source: Path, target: Path) -> None:
        steps.append(("replace", Path(source).stat().st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_text(tmp_path / "file", "12345")
    assert steps == [("fsync", 5), ("replace", 5)]


def test_two_writers_at_once_do_not_mix_and_the_last_one_to_finish_wins(tmp_path):
    path = tmp_path / "file.txt"

    def outer(temporary: Path) -> None:
        temporary.write_text("outer, ")
        write_text(path, "inner")
        assert path.read_text() == "inner"
        with temporary.open("a") as file:
            file.write("whole")

    write_atomically(path, outer)
    assert path.read_text() == "outer, whole"
    assert list(tmp_path.iterdir()) == [tmp_path / "file.txt"]


def test_a_file_in_the_place_of_a_folder_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / "inside", "y")
    assert (tmp_path / "file").read_text() == "x"


def two_files(folder: Path) -> None:
    (folder / "a").write_text("1")
    (folder / "b").write_text("2")


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_with_all_its_files(tmp_path, there):
    path = tmp_path / "parent" / "folder"
    if there:
        path.mkdir(parents=True)
    write_folder_atomically(path, two_files)
    assert {p.name: p.read_text() for p in path.iterdir()} == {"a": "1", "b": "2"}
    assert list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_a_link_to_an_empty_folder_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_folder_atomically(tmp_path / "link", two_files)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "1"


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt, SystemExit])
def test_a_folder_that_is_half_written_goes_away(tmp_path, error):
    def write(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise error("stop")

    with pytest.raises(error, match="stop"):
        write_folder_atomically(tmp_path / "folder", write)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_nothing(tmp_path):
    for name in ("folder", "file"):
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
            (path / "old").write_text("old")
        else:
            path.write_text("old")
        with pytest.raises(FileExistsError, match=f"{name} exists and is no"):
            write_folder_atomically(path, two_files)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["file", "folder", "folder/old"]


def test_files_that_come_into_the_folder_meanwhile_stay(tmp_path):
    path = tmp_path / "folder"

    def write(folder: Path) -> None:
        two_files(folder)
        path.mkdir()
        (path / "theirs").write_text("theirs")

    with pytest.raises(OSError, match="not empty"):
        write_folder_atomically(path, write)
    assert [p.name for p in path.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [path]
