"""What three pages of docs/ show of a shell, typed: a page is one script, and it prints what the page says.

The fences ```sh of a page are typed one after the other, in one bash that ends at the first error. A fence ```sh with
another word after it (`gpu`, `make`) is shown only. A fence ```text is all that the ```sh before it printed, where

- a number matches any number, and twelve or more hexadecimal digits any others;
- `...` within a line matches whatever is there, and a line of `...` any number of lines;
- spaces count as one, the strokes of a line, too, and empty lines not at all.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("quickstart.md", "walkthrough.md", "own-model.md")
FENCE = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER, HEX = r"[-+]?\d+(?:[.,:]\d+)*", r"[0-9a-f]{12,}"
WILD = re.compile(rf"(?P<rest>\.\.\.)|(?P<hex>\b{HEX}\b)|(?P<number>{NUMBER})")
MARK = "=== the next block ==="
SECONDS = 540
"""Here a page takes about 90 seconds of one core, and a core may be shared by four."""


def lines(text: str) -> list[str]:
    return [re.sub(r"([━─])\1+", r"\1", " ".join(line.split())) for line in text.splitlines() if line.strip()]


def pattern(shown: str) -> re.Pattern[str]:
    """Of all that may be printed where a page shows this."""
    made = ""
    for line in lines(shown):
        start = 0
        for found in WILD.finditer("" if line == "..." else line):
            wild = {"rest": ".*", "hex": HEX, "number": NUMBER}[found.lastgroup or ""]
            made += re.escape(line[start : found.start()]) + wild
            start = found.end()
        made += r"(?:.*\n)*?" if line == "..." else re.escape(line[start:]) + r"\n"
    return re.compile(made)


def typed(script: str, folder: Path) -> tuple[int | None, str]:
    """Exit status (None: it took too long) and all that was printed. Whatever it started is stopped."""
    work, vitfit = folder / "work", folder / "bin" / "vitfit"
    work.mkdir()
    vitfit.parent.mkdir()
    vitfit.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m api.cli "$@"\n')
    vitfit.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VITFIT_")} | {
        "PATH": f"{vitfit.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "VITFIT_DATA_DIR": str(work / "library"),
        "VITFIT_PORT": str(port),
        "COLUMNS": "200",  # where lines are broken is of no interest
    }
    command = ["bash", "-euo", "pipefail", "-c", script]
    with (folder / "printed.txt").open("w") as out:
        shell = subprocess.Popen(
            command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
        try:
            status = shell.wait(SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            stop(shell.pid, work)
            shell.wait()
    return status, (folder / "printed.txt").read_text(encoding="utf-8")


def stop(session: int, work: Path) -> None:
    """The script's session, and what left it (a worker does its steps in a session of its own), known by its folder."""
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while left := [int(one.name) for one in Path("/proc").glob("[0-9]*") if str(work) in setting_of(one)]:
        assert time.monotonic() < deadline, left
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def setting_of(process: Path) -> str:
    try:
        return (process / "environ").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended, or is another user's
        return ""


def test_the_rule_for_what_is_shown():
    shown = pattern("wrote a.onnx, 1.5 ms  of 20\n...\nid 0123456789ab, on ...-b8\n")
    assert shown.fullmatch("wrote a.onnx, 12 ms of 3.25\nid ffffffffffff00, on amd-epyc-b64\n")
    assert shown.fullmatch("wrote a.onnx, 1 ms of 2\nmore\nand more\nid abcdefabcdef, on x-b1\n")
    assert not shown.fullmatch("wrote b.onnx, 1 ms of 2\nid abcdefabcdef, on x-b1\n")
    assert not shown.fullmatch("wrote a.onnx, 1 ms of 2\nid abcdefabcdef, on x-b1\nmore\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what a page started is found in /proc")
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl; `make test` installs it as root on Debian")
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_works_and_prints_what_is_shown(page, tmp_path):
    found = FENCE.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert found[0][0] == "sh"
    script = "".join(f"echo '{MARK}'\n{block}" for kind, block in found if kind == "sh")
    status, printed = typed(script, tmp_path)
    assert status == 0, printed
    printed_by = iter(printed.split(f"{MARK}\n")[1:])
    for kind, block in found:
        if kind == "sh":
            after = "".join(f"{line}\n" for line in lines(next(printed_by)))
        else:
            assert pattern(block).fullmatch(after), f"shown:\n{block}\nprinted:\n{after}"
