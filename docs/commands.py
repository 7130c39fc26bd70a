"""Writes docs/commands.md, every command with its arguments and options, from the commands themselves.

$ python docs/commands.py            # renews the file; the tests say when it is out of date
"""

import inspect
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from api.cli import app

PATH = Path(__file__).with_name("commands.md")

HEAD = """# Every command

Made by `python docs/commands.py` from what `--help` shows. Results go to stdout, everything else to stderr; `--json`
prints one JSON document. Exit status: 0 done, 1 failed with one line that says why, 2 wrong usage.
"""


def text() -> str:
    sections = (section(name, command) for name, command in sorted(commands(app, "vitfit")))
    return "\n".join([HEAD, *(line for lines in sections for line in lines)])


def commands(group: typer.Typer, name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Those that do something, by their whole name."""
    for command in group.registered_commands:
        if not command.hidden:
            assert command.callback is not None
            yield f"{name} {command.name or command.callback.__name__.replace('_', '-')}", command.callback
    for sub in group.registered_groups:
        assert sub.typer_instance is not None
        yield from commands(sub.typer_instance, f"{name} {sub.name or sub.typer_instance.info.name}")


def section(name: str, command: Callable[..., Any]) -> Iterator[str]:
    hints = get_type_hints(command, include_extras=True)
    arguments, options = [], []
    for parameter in inspect.signature(command).parameters.values():
        kind, info = get_args(hints[parameter.name])[:2]
        if isinstance(info, ArgumentInfo):
            shown = (info.metavar or parameter.name.upper()) + ("..." if get_origin(kind) is list else "")
            arguments.append((shown.replace("......", "..."), info.help or ""))
        elif isinstance(info, OptionInfo) and not info.hidden:
            options.append(option(parameter, kind, info))
    yield f"## `{' '.join([name, *(shown for shown, _ in arguments)])}`\n"
    yield f"{paragraphs(command.__doc__ or '')}\n"
    for shown, said in arguments:
        yield f"- `{shown}`{': ' if said else ''}{said}"
    yield from options
    yield ""


def option(parameter: inspect.Parameter, kind: Any, info: OptionInfo) -> str:
    usual = "--" + parameter.name.replace("_", "-")
    # Within Annotated an option's first name arrives where its default would be.
    given = (info.default, *(info.param_decls or ()))
    names = [one for one in given if isinstance(one, str) and one.startswith("-")]
    names = names or [f"{usual}/--no-{usual[2:]}" if kind is bool else usual]
    said, value = " ".join((info.help or "").split()), parameter.default
    if value is inspect.Parameter.empty:
        said += " **Required.**"
    elif value not in (None, "", [], False, True) or (value == 0 and value is not False and kind is not bool):
        said += f" Default: {value}."
    elif kind is bool and "/" in names[0]:
        said += f" Default: {names[0].split('/')[0 if value else 1]}."
    return f"- {', '.join(f'`{one}`' for one in names)}{type_of(kind)}{': ' if said else ''}{said.strip()}"


def type_of(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is list:
        return f"{type_of(get_args(kind)[0])}, several"
    names = {int: " NUMBER", float: " NUMBER", str: " TEXT", Path: " PATH", bool: ""}
    return names[kind]


def paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
