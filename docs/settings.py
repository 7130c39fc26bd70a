"""Writes the table of settings in docs/operations.md from the settings themselves.

$ python docs/settings.py            # renews the table; the tests say when it is out of date
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic_core import PydanticUndefined

from api.settings import PREFIX, Settings

PATH = Path(__file__).with_name("operations.md")
FROM, TO = "<!-- settings -->\n", "<!-- end of settings -->"


def table() -> str:
    rows = [f"| `{PREFIX}{name.upper()}` | {shown} | {said} |" for name, shown, said in settings()]
    return "\n".join(["| setting | default | what |", "|---|---|---|", *rows, ""])


def settings() -> Iterator[tuple[str, str, str]]:
    described = descriptions(Settings.__doc__ or "")
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "" if default is PydanticUndefined or default in ("", {}) else f"`{default}`"
        yield name, shown, described[name]


def descriptions(text: str) -> dict[str, str]:
    """What the class's docstring says of each; several may share a line."""
    found: dict[str, str] = {}
    for part in re.split(r"\n {8}(?=\S)", text.partition("Attributes:")[2]):
        names, colon, said = part.partition(":")
        if colon:
            found |= {name.strip(): " ".join(said.split()) for name in names.split(",")}
    return found


def with_table(text: str) -> str:
    before, _, rest = text.partition(FROM)
    _, _, after = rest.partition(TO)
    return f"{before}{FROM}{table()}{TO}{after}"


if __name__ == "__main__":
    PATH.write_text(with_table(PATH.read_text(encoding="utf-8")), encoding="utf-8")
