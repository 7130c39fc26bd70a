"""What steps of jobs are given, and how what they made gets into the library, where later jobs and requests name it."""

import filecmp
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.errors import NameTakenError
from api.library import Library
from api.settings import Settings
from api.store_door import PLACES, Noun

if TYPE_CHECKING:
    from api.catalogue_values import Accuracy

Document = Mapping[str, Any]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Context:
    """
    Attributes:
        document: what was posted.
        folder: of the job's files, for this process alone.
        log: a line into the job's log.
    """

    document: dict[str, Any]
    library: Library
    settings: Settings
    folder: Path
    log: Callable[[str], None]


Step = Callable[[Context, Document, Progress], Document]
"""Gets what the step before returned. Of what it returns, `leaves` names the files in its folder that are to stay."""


def place(root: Path, noun: Noun, name: str) -> Path:
    folder, suffix = PLACES[noun]
    return root / folder / f"{name}{suffix}"


def check_free(root: Path, noun: Noun, name: str) -> None:
    """
    Raises:
        NameTakenError: the library has one of that name.
    """
    if place(root, noun, name).exists():
        raise NameTakenError(f"the library has a {noun} {name!r} already; choose another name")


def save_as(context: Context, noun: Noun, made: Path, suffix: str = "", accuracies: Sequence["Accuracy"] = ()) -> None:
    """Put a file into the library under the name that the request gives, if it does: whole, or not at all. A model is
    in the catalogue then, too.

    Args:
        suffix: of the name.
        accuracies: of a model, for the catalogue.

    Raises:
        NameTakenError: another file has the name. The same file again is what a step does that was interrupted.
    """
    if (name := context.document.get("save_as")) is None:
        return
    if context.settings.database_url:  # other machines have another data folder
        _store(context, noun, f"{name}{suffix}", made)
        return
    path = place(context.settings.data_dir, noun, f"{name}{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
    os.close(handle)
    try:
        shutil.copyfile(made, temporary)
        Path(temporary).chmod(0o644)
        os.link(temporary, path)  # unlike a rename, it takes no name that is taken
    except FileExistsError:
        if not filecmp.cmp(made, path, shallow=False):
            raise NameTakenError(f"the library has a {noun} {path.stem!r} already; choose another name") from None
    finally:
        Path(temporary).unlink()
    context.log(f"saved in the library as {noun} {path.stem}")
    if noun == "model":
        _remember(context, path, accuracies)


def _remember(context: Context, path: Path, accuracies: Sequence["Accuracy"]) -> None:
    """Where that cannot be, say so and leave it."""
    from api.catalogue import Catalogue
    from api.catalogue_sources import of_checkpoint
    from api.catalogue_values import DatabaseError
    from api.db import Database, database_url

    try:
        database = Database(database_url(context.settings))
        try:
            Catalogue(database).add([of_checkpoint(path, accuracies)])
        finally:
            database.close()
    except DatabaseError as error:
        context.log(f"it is not in the catalogue: {error}")


def _store(context: Context, noun: Noun, name: str, made: Path) -> None:
    from api.store_door import StoreDoor

    door = StoreDoor(context.settings)
    try:
        door.open().add(noun, name, made, {"job": context.folder.name})
    finally:
        door.close()
    context.log(f"saved in the library as {noun} {name}, for every machine")


def paths_left(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Files by kind, as results list them, as names in the folder; of a folder, all that is in it."""
    found = []
    for name in files.values():
        path = folder / name
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [str(one.relative_to(folder)) for one in inside if one.is_file()]
    return found
