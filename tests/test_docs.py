"""What the documentation shows from Python works as shown."""

import doctest
import re
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


def test_the_table_of_settings_is_what_the_settings_say():
    settings = runpy.run_path(str(DOCS / "settings.py"))
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    assert settings["with_table"](text) == text, "run `python docs/settings.py`"
    assert all(said for _, _, said in settings["settings"]())


def test_every_threat_names_a_test_that_is_there():
    rows = [line for line in (DOCS / "security.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    tests = "\n".join(path.read_text(encoding="utf-8") for path in DOCS.parent.glob("tests/**/*.py"))
    for row in rows[1:]:
        named = re.findall(r"`([^`]+)`", row.split("|")[3])
        assert named, row
        for name in named:
            file, _, function = name.rpartition("::")
            if function and not function.endswith((".py", "/")):
                assert f"def {function}(" in tests, name
            else:
                assert list(DOCS.parent.glob(f"**/{Path(name).name}")), name
            del file
