"""Commands for those who operate vitfit: doctor, backup, restore."""

from pathlib import Path
from typing import Annotated

import typer

from api.console import JsonOption, err, out, print_json, print_table

DataDir = Annotated[Path | None, typer.Option(help="Default: VITFIT_DATA_DIR or the user data folder.")]


def doctor(data_dir: DataDir = None, as_json: JsonOption = False) -> None:
    """Is everything there that vitfit needs? Exit status 1 where something is not."""
    from api.doctor import examine
    from api.settings import Settings

    findings = examine(Settings() if data_dir is None else Settings(data_dir=data_dir))
    if as_json:
        print_json({"findings": [one.to_dict() for one in findings]})
    else:
        print_table(
            "vitfit doctor", ("", "state", "found", "what to do"), [(f.name, f.state, f.found, f.do) for f in findings]
        )
    if any(one.state == "fail" for one in findings):
        raise typer.Exit(1)


def backup(
    path: Annotated[Path, typer.Argument(help="File to write, vitfit.tar.gz.")],
    data_dir: DataDir = None,
    as_json: JsonOption = False,
) -> None:
    """Databases, blobs and files in one archive, while the service may run; of a PostgreSQL by pg_dump."""
    from api.backup import back_up
    from api.settings import Settings

    made = back_up(Settings() if data_dir is None else Settings(data_dir=data_dir), path)
    if as_json:
        print_json(made)
    else:
        err.print(f"wrote {path}: {made['files']} files, {made['bytes'] / 1e6:.1f} MB", highlight=False)


def restore(
    path: Annotated[Path, typer.Argument(help="What `vitfit backup` wrote.")],
    data_dir: DataDir = None,
    as_json: JsonOption = False,
) -> None:
    """Unpack a back-up into a data folder that is not there or empty; every file is verified first."""
    from api.backup import restore as unpack
    from api.settings import Settings

    made = unpack(path, (Settings() if data_dir is None else Settings(data_dir=data_dir)).data_dir)
    if as_json:
        print_json(made)
        return
    err.print(f"restored {made['files']} files into {made['data_dir']}", highlight=False)
    if made["database_dump"]:
        out.print(
            f"the database comes back with: pg_restore --clean --if-exists -d ... {made['data_dir']}/database.dump",
            highlight=False,
            soft_wrap=True,
        )
