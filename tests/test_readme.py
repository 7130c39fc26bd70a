"""What the README shows works as shown."""

from pathlib import Path

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
