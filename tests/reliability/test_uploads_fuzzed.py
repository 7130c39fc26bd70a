"""No upload breaks the service: a few of the files of benchmarks/fuzz_uploads.py, every bomb among them."""

from tests.reliability.uploads import FuzzedService, fuzzed, good_files

GIB = 2**30


def test_good_files_are_taken_and_leave_nothing_once_deleted(tmp_path):
    with FuzzedService(tmp_path) as service:
        sent = [service.send(upload) for upload in good_files(tmp_path)]
        assert [wrong for _, wrong in sent if wrong] == []
        assert {status for status, _ in sent} == {200, 201}
        assert service.left() == []


def test_mutated_files_and_bombs_get_clean_answers_in_bounded_memory_and_leave_nothing(tmp_path):
    with FuzzedService(tmp_path) as service:
        before = service.peak_bytes()
        answers = [(upload, *service.send(upload)) for upload in fuzzed(400, 1, tmp_path)]
        assert [(upload.name, wrong) for upload, _, wrong in answers if wrong] == []
        for upload, status, _ in answers:
            checked = upload.path.endswith("/validate")  # says in a 200 what it thinks of the file
            assert status in ({200, 413, 415, 422} if checked else {200, 201, 413, 415, 422}), upload.name
            if upload.name.startswith("bomb") and not checked:
                assert status != 200, upload.name
        assert service.peak_bytes() - before < GIB / 2
        assert service.left() == []
