"""What the documentation shows from Python works as shown."""

import doctest
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
SCRIPTS = sorted(path.name for path in DOCS.glob("*.md") if ">>> " in path.read_text(encoding="utf-8"))


def test_the_five_things_that_people_do_in_scripts_are_shown():
    text = (DOCS / "library.md").read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["Estimate", "Ask a frontier", "Redistribute", "Run a study", "Compress"]
    assert SCRIPTS == ["library.md"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_example_gives_what_it_says(name):
    found = doctest.testfile(str(DOCS / name), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 30
    assert found.failed == 0


def test_the_list_of_commands_is_what_the_commands_say():
    commands = runpy.run_path(str(DOCS / "commands.py"))
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == commands["text"](), "run `python docs/commands.py`"
