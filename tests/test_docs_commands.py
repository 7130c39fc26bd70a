"""What three pages of docs/ show of a shell, typed: a page is one script, and it prints what the page says.

The fences ```sh of a page are typed one after the other, in one bash that ends at the first error. A fence ```sh with
another word after it (`gpu`, `make`) is shown only. A fence ```text is all that the ```sh before it printed, where

- a number matches any number, and twelve or more hexadecimal digits any others;
- `...` within a line matches whatever is there, and a line of `...` any number of lines;
- spaces count as one, the strokes of a line, too, and empty lines not at all.
"""

import re
import shutil
import sys

import pytest

from tests.docs_shell import fences, page_text, typed

PAGES = ("quickstart.md", "walkthrough.md", "own-model.md")
NUMBER, HEX = r"[-+]?\d+(?:[.,:]\d+)*", r"[0-9a-f]{12,}"
WILD = re.compile(rf"(?P<rest>\.\.\.)|(?P<hex>\b{HEX}\b)|(?P<number>{NUMBER})")
MARK = "=== the next block ==="


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
    found = [fence for fence in fences(page_text(f"docs/{page}")) if fence[0] in ("sh", "text")]
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
