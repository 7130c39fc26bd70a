"""The process that does the steps: when it ends, the next question goes to another one."""

import sys

import pytest

from api.runner_process import ENDED, RunnerProcess
from api.settings import Settings

DYING = """
import os, sys, time

sys.stdin.readline(), sys.stdin.readline()
print('{"log": "%d"}' % os.getpid(), flush=True)
os.close(1)
time.sleep(600)
"""
"""What is seen of a process that is dying: its stdout is closed, and it is still there."""


@pytest.mark.slow
def test_one_that_is_still_dying_is_asked_nothing_more(tmp_path):
    runner = RunnerProcess(Settings(data_dir=tmp_path), command=(sys.executable, "-c", DYING))
    asked = []
    for _ in range(3):
        runner.ask({})
        asked.append(runner.next(60))
        assert runner.next(60) is ENDED
    runner.close()
    assert len({said["log"] for said in asked}) == 3, "each time another one"
