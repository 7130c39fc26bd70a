"""Commands, options and paths that any page shows are there; nothing is run. What is run: `test_docs_commands.py`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from typer.main import get_command

ROOT = Path(__file__).parent.parent
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
PAGES |= {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CHANGELOG.md")}
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
COMMENT = re.compile(r"(?:^|\s)#.*")
COMMAND = re.compile(r"(?<![\w./-])vitfit ((?:[^|;&>)`]|(?<=\w)\|(?=\w))+)")
"""`vitfit jobs list|show` is two; whatever else a shell takes for an end is the end."""
PATH = re.compile(r"(?:\b(GET|POST|PUT|DELETE) |(?<![\w]))[\w:/.$]*?(/v1/[^\s\"'`,;)]+)")


def shown(text: str) -> Iterator[str]:
    """Lines of shell, without comments and as one where they go on; then what stands in `` ` `` within prose."""
    for kind, block in FENCE.findall(text):
        if kind.split()[:1] in ([], ["sh"]):
            for line in block.replace("\\\n", " ").splitlines():
                yield COMMENT.sub("", line)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)))


def alternatives(words: list[str]) -> Iterator[list[str]]:
    """['jobs', 'list|show'] -> ['jobs', 'list'], ['jobs', 'show']."""
    if not words:
        yield []
        return
    for first in words[0].split("|"):
        yield from ([first, *rest] for rest in alternatives(words[1:]))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_that_is_shown_exists(page):
    from api.cli import app

    for line in (line for text in shown(PAGES[page]) for line in COMMAND.findall(text)):
        for words in alternatives(line.split()):
            command: Any = get_command(app)
            while words and hasattr(command, "commands"):
                if not re.fullmatch("[a-z-]+", words[0]):
                    break  # `vitfit COMMAND`: of any
                assert words[0] in command.commands, f"vitfit {line}"
                command, words = command.commands[words[0]], words[1:]
            known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            for option in (word.partition("=")[0] for word in words if re.match("--?[a-z]", word)):
                assert option in known | {"--help"}, f"vitfit {line}"


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Any]:
    from api.app import create_app
    from api.settings import Settings

    found: dict[str, Any] = create_app(Settings(data_dir=tmp_path_factory.mktemp("data"), worker=False)).openapi()[
        "paths"
    ]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_is_shown_exists_with_its_method_and_queries(page, paths):
    for line in shown(PAGES[page]):
        for said, address in PATH.findall(line):
            path, _, query = address.partition("?")
            methods = {said.lower()} if said else method_of(line)
            for one in ("".join(words) for words in alternatives_of_path(path)):
                fitting = [paths[known] for known in paths if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", known), one)]
                found = [
                    operation[name] for operation in fitting for name in operation if not methods or name in methods
                ]
                assert found, f"{methods or 'any'} {one}: {line}"
                taken = {parameter["name"] for operation in found for parameter in operation.get("parameters", ())}
                assert {name for name, _ in parse_qsl(query)} <= taken, line


def method_of(line: str) -> set[str]:
    """What curl would send; nothing is said where there is no curl."""
    if not re.search(r"\b(curl|ask)\b", line):
        return set()
    if asked := re.search(r"-X (\w+)", line):
        return {asked[1].lower()}
    return {"post"} if re.search(r"\s(-d|--data-binary)\b", line) else {"get"}


def alternatives_of_path(path: str) -> Iterator[list[str]]:
    """/v1/catalogue/find|search is two."""
    before, slash, last = path.rpartition("/")
    return ([before, slash, one] for one in last.split("|"))
