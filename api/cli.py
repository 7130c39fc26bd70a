"""The command line: one sub-command per function of `workflow` and `queries`.

Exit status 0 done, 1 failed with one line that says why, 2 wrong usage. Starts without torch; commands that need it
load it.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api import (
    cli_catalogue,
    cli_compress,
    cli_jobs,
    cli_keys,
    cli_latency,
    cli_models,
    cli_operations,
    cli_profile,
    cli_prune,
    cli_quantise,
    cli_report,
    cli_rules,
    cli_search,
    cli_sparsify,
    cli_study,
    cli_tables,
    cli_train,
)
from api.console import JsonOption, err, escaped, out, print_json
from vit.errors import VitfitError

if TYPE_CHECKING:
    from types import FrameType

GRACE_SECONDS = 20
"""For requests that are under way when the service is told to end."""

app = typer.Typer(
    name="vitfit",
    help="Fits a Vision Transformer to a latency budget on the hardware you name, and shows the proof.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

for command in (
    cli_latency.targets,
    cli_profile.profile,
    cli_latency.estimate,
    cli_latency.measure,
    cli_search.search,
    cli_rules.redistribute,
    cli_compress.compress,
    cli_compress.rebase,
    cli_models.saliency,
    cli_prune.prune,
    cli_prune.pick,
    cli_train.finetune,
    cli_quantise.quantise,
    cli_sparsify.sparsify,
    cli_models.evaluate,
    cli_models.export,
    cli_jobs.worker,
    cli_report.report,
    cli_operations.doctor,
    cli_operations.backup,
    cli_operations.restore,
):
    app.command()(command)
app.command(name="import")(cli_models.import_)
app.add_typer(cli_tables.app, name="table")
app.add_typer(cli_rules.app, name="rules")
app.add_typer(cli_catalogue.app, name="catalogue")
app.add_typer(cli_catalogue.database, name="db")
app.add_typer(cli_study.app, name="study")
app.add_typer(cli_jobs.app, name="jobs")
app.add_typer(cli_keys.app, name="keys")


def main() -> None:
    """Entry point of `vitfit`."""
    try:
        app()
    except VitfitError as error:
        err.print(f"[bold red]error:[/] {escaped(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Default: VITFIT_HOST or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: VITFIT_PORT or 8000.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Default: VITFIT_DATA_DIR or the user data folder.")] = None,
) -> None:
    """Serve the REST interface; it describes itself at /openapi.json."""
    import logging

    import uvicorn

    from api import logs
    from api.app import create_app
    from api.settings import Settings

    given = {"host": host, "port": port, "data_dir": data_dir}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    service = create_app(settings)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: "FrameType | None") -> None:
            service.state.hub.end()  # streams would be waited for
            super().handle_exit(sig, frame)

    logs.configure(settings, "service", logging.INFO)
    Server(
        uvicorn.Config(
            service,
            host=settings.host,
            port=settings.port,
            log_config=None,  # ours
            access_log=False,  # api.logs.request says more
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    ).run()


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results; a second run resumes.")] = Path(
        "vitfit-demo"
    ),
    quick: Annotated[bool, typer.Option(help="Shorter training and a smaller table, for tests.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The main job on this machine: train, profile, compress to three latency budgets, compare, measure, report."""
    from api.demo import run_demo
    from api.demo_plan import FULL, QUICK

    rows = run_demo(folder, QUICK if quick else FULL, err)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        from api.demo_table import print_results

        print_results(rows, out)


if __name__ == "__main__":
    main()
