"""What the README shows works as shown."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = README.split("```")[1::2]
COMMANDS = sorted(
    {line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.startswith("vitfit ")}
)


GROUPS = {"catalogue", "db", "jobs", "rules", "study", "table", "keys"}
"""Commands that have commands of their own."""


def test_the_readme_opens_with_the_two_commands():
    assert [line.split("#")[0].strip() for line in BLOCKS[0].strip().splitlines()] == ["make demo", "make test"]


def test_the_readme_shows_every_command():
    from api.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    known |= GROUPS
    assert known - {"demo"} == {line.split()[1] for line in COMMANDS}


@pytest.mark.parametrize("line", COMMANDS)
def test_every_option_in_the_readme_exists(line):
    _, *arguments = line.split()
    command = arguments[: 2 if arguments[0] in GROUPS else 1]
    result = subprocess.run(
        [sys.executable, "-m", "api.cli", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    for option in (argument for argument in arguments if argument.startswith("-")):
        assert re.search(rf"(^|[\s,|│]){re.escape(option)}[\s,|│]", result.stdout, re.MULTILINE), option
