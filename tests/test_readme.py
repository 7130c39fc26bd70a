"""What the README shows works as shown."""

from tests.docs_shell import fences, page_text

BLOCKS = [block for _, block in fences(page_text("README.md"))]
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
