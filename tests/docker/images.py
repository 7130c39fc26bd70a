"""Dockerfiles as BuildKit's own parser reads them, and their commands run without a container engine."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import dockerfile

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str
    value: tuple[str, ...]
    flags: tuple[str, ...]
    json: bool
    line: int


@dataclass(slots=True)
class Stage:
    """What one FROM begins: its instructions in order."""

    base: str
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [one for one in self.instructions if one.name == name]

    def last(self, name: str) -> Instruction:
        return self.all(name)[-1]

    @property
    def environment(self) -> dict[str, str]:
        """What ENV sets; a value may refer to what is set before the instruction."""
        found: dict[str, str] = {}
        for one in self.all("ENV"):
            named = dict(zip(one.value[0::2], one.value[1::2], strict=True))
            found |= {name: value.strip('"') for name, value in named.items()}
        return found


def stages(path: Path) -> list[Stage]:
    found: list[Stage] = []
    for one in dockerfile.parse_file(str(path)):
        name = one.cmd.upper()
        if name == "FROM":
            found.append(Stage(one.value[0], one.value[2] if len(one.value) == 3 else None))
        else:
            found[-1].instructions.append(Instruction(name, one.value, one.flags, one.json, one.start_line))
    return found


class Built:
    """The stages of a Dockerfile carried out in a folder that stands for the root of a file system.

    COPY copies, RUN is given to the shell as it is written, with the image's ENV; only the paths of ENV lie in the
    folder. Everything runs as `user`, who owns the folder and nothing else.
    """

    def __init__(self, folder: Path, user: int, python: Path) -> None:
        self.folder, self.user, self.log = folder, user, list[str]()
        for name in ("home", "tmp", "bin"):
            (folder / name).mkdir(parents=True)
        launcher = folder / "bin" / "python"  # what the base image has
        launcher.write_text(f'#!/bin/sh\nexec {python} "$@"\n', encoding="ascii")
        launcher.chmod(0o755)
        self._own(folder)

    def inside(self, path: str) -> str:
        return f"{self.folder}{path}"

    def environment(self, stage: Stage) -> dict[str, str]:
        own = {
            name: self.inside(value) if value.startswith("/") else value for name, value in stage.environment.items()
        }
        own.pop("PATH", None)
        path = f"{self.folder}/bin:/usr/local/bin:/usr/bin:/bin"
        if "PATH" in stage.environment:
            path = f"{self.inside('/opt/vitfit/bin')}:{path}"
        index = {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_CERT", "REQUESTS_CA"))
        }
        return (
            index
            | {"HOME": self.inside("/home"), "TMPDIR": self.inside("/tmp")}
            | own
            | {
                "VITFIT_UID": str(self.user),
                "PATH": path,
            }
        )

    def build(self, stage: Stage, timeout: float) -> None:
        directory = self.folder
        for one in stage.instructions:
            match one.name:
                case "WORKDIR":
                    directory = Path(self.inside(one.value[0]))
                    directory.mkdir(parents=True, exist_ok=True)
                    self._own(directory)
                case "COPY" if not one.flags:
                    *sources, to = one.value
                    for source in sources:
                        self._copy(ROOT / source, directory / to if to != "./" else directory / source)
                case "RUN":
                    self.log.append(one.value[0])
                    self.run(["/bin/sh", "-c", one.value[0]], stage, directory, timeout)

    def run(self, command: list[str], stage: Stage, directory: Path, timeout: float) -> str:
        done = subprocess.run(
            as_user(self.user, command),
            cwd=directory,
            env=self.environment(stage),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def _copy(self, source: Path, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, to)
        self._own(self.folder)

    def _own(self, folder: Path) -> None:
        if os.geteuid() != 0:
            return
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink() and path.stat().st_uid != self.user:
                os.chown(path, self.user, self.user)


def as_user(user: int, command: list[str]) -> list[str]:
    """The command without any right that root has."""
    if os.geteuid() != 0:
        return command
    privileges = ["--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    return ["setpriv", "--reuid", str(user), "--regid", str(user), *privileges, "--", *command]
