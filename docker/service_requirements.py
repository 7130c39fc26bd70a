"""Prints what the service needs of pyproject.toml: all but what only work on models does, which workers do.

    $ python docker/service_requirements.py pyproject.toml

torch and what comes with it are nineteen twentieths of an installation, and a service that hands its jobs to workers
never loads them. They stay in the project's own dependencies, so that on one machine a single command installs all.
"""

import re
import sys
import tomllib
from pathlib import Path

WORKERS = frozenset({"torch", "torchao", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript"})


def service_requirements(pyproject: str) -> list[str]:
    """Of the text of a pyproject.toml."""
    given: list[str] = tomllib.loads(pyproject)["project"]["dependencies"]
    named = {re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]: text for text in given}
    if missing := WORKERS - set(named):
        raise SystemExit(f"pyproject.toml does not ask for {', '.join(sorted(missing))} any more")
    return [text for name, text in named.items() if name not in WORKERS]


if __name__ == "__main__":
    print("\n".join(service_requirements(Path(sys.argv[1]).read_text(encoding="utf-8"))))
