"""Killed at any byte, a journal loses at most the line that was being written, and never another's work."""

import pytest

from vit.errors import JournalError
from vit.journal import Journal, read_journal

HEADER = {"journal": "test", "seed": 0, "target": {"device": "é", "sizes": (1, 2)}}
LINES = [{"point": index, "ms": index / 7, "note": "a\nb\r\u2028"} for index in range(4)]


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "deep" / "j.jsonl"
    with Journal(target, HEADER) as journal:
        for line in LINES:
            journal.append(line)
    return target


def test_lines_come_back_in_order(path):
    with Journal(path, HEADER) as journal:
        assert journal.lines == LINES


def test_a_line_is_on_disk_when_append_returns(path):
    with Journal(path, HEADER) as journal:
        before = path.stat().st_size
        journal.append({"more": 1})
        assert path.read_bytes()[before:] == b'{"more":1}\n'


def test_cut_off_at_any_byte_it_loses_only_the_torn_line_and_goes_on_as_if_nothing_had_happened(path):
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        survivors = max(whole[:length].count(b"\n") - 1, 0)
        with Journal(path, HEADER) as journal:
            assert journal.lines == LINES[:survivors], length
            for line in LINES[survivors:]:
                journal.append(line)
            assert journal.lines == LINES
        assert path.read_bytes() == whole, length


@pytest.mark.parametrize("tail", [b"{", b"\x00\x00\x00", b"\x00\x00\n", b"\xff\xfe\n", b'{"point":9'])
def test_rubbish_after_the_last_whole_line_is_dropped(path, tail):
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with Journal(path, HEADER) as journal:
        assert journal.lines == LINES
    assert path.read_bytes() == whole


def test_what_differs_is_named(path):
    with pytest.raises(JournalError, match=r"of other work \(another seed\); choose another --out"):
        Journal(path, {**HEADER, "seed": 1})


@pytest.mark.parametrize("header", [{}, {**HEADER, "seed": 1}, {**HEADER, "more": 1}])
def test_the_journal_of_other_work_is_refused_and_left_alone(path, header):
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"is the journal of other work.*choose another --out, or delete it"):
        Journal(path, header)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"my thesis\n", b"my thesis", b"{}\n", b"[1]\n", b"\n", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    with pytest.raises(JournalError, match="is the journal of other work"):
        Journal(path, HEADER)
    assert path.read_bytes() == content


def test_a_journal_that_another_run_is_writing_is_refused(path):
    with Journal(path, HEADER), pytest.raises(JournalError, match="another process is writing"):
        Journal(path, HEADER)
    with Journal(path, HEADER) as journal:
        assert journal.lines == LINES


def test_a_journal_can_be_read_while_it_is_written(path):
    with Journal(path, HEADER):
        header, lines = read_journal(path)
    assert (header["seed"], lines) == (HEADER["seed"], LINES)


@pytest.mark.parametrize(("content", "says"), [(None, "no journal at"), (b"", "is no journal"), (b"[1]\n", "is no j")])
def test_what_is_no_journal_cannot_be_read(tmp_path, content, says):
    if content is not None:
        (tmp_path / "j").write_bytes(content)
    with pytest.raises(JournalError, match=says):
        read_journal(tmp_path / "j")
