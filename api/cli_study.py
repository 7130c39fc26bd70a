"""Commands about studies: run, list, show."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.console import JsonOption, err, escaped, open_library, out, print_json, print_table, progress_bar
from api.study_document import study_document

if TYPE_CHECKING:
    from search.study_report import Standing

app = typer.Typer(name="study", help="Studies: search for what has no closed form.", no_args_is_help=True)


@app.command()
def run(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The study, YAML or JSON.")],
    check: Annotated[bool, typer.Option("--check", help="Read and check the file, and run nothing.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of this worker's training.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Run a study, or go on with it; started several times on one database, the runs share its trials."""
    from api.db import database_url
    from api.settings import Settings
    from search.study_file import load_study

    spec = load_study(path)
    if check:
        if as_json:
            print_json({"study": spec.name, **spec.identity(), "trials": spec.trials})
        else:
            out.print(f"{spec.name}: {spec.trials} trials over {', '.join(spec.varied)}", highlight=False)
        return
    from api.study_run import evaluator_of
    from api.study_store import closing_storage, open_studies
    from search.study import run_study
    from search.study_report import standing

    settings, library = Settings(), open_library()
    if not spec.in_memory:
        import torch

        torch.set_num_threads(threads)  # several workers share a machine
    evaluator = evaluator_of(spec, library)
    with closing_storage(open_studies(database_url(settings))) as storage:
        with progress_bar(spec.name, spec.trials) as show:
            for ended in run_study(spec, storage, evaluator):
                show(ended.done)
                if ended.state == "failed":
                    err.print(f"trial failed: {escaped(ended.error or '')}", highlight=False)
        found = standing(spec.name, storage)
    _remember(found, spec.seed)
    _print(found, as_json)


def _remember(found: "Standing", seed: int) -> None:
    """What the study found is in the catalogue from now on."""
    from api.catalogue_sources import of_study
    from api.cli_catalogue import opened

    _, catalogue = opened()
    catalogue.add(of_study(found, seed))


@app.command(name="list")
def list_studies(as_json: JsonOption = False) -> None:
    """Every study of the database, and how far it is."""
    from api.db import database_url
    from api.settings import Settings
    from api.study_store import closing_storage, open_studies
    from search.study_report import studies

    with closing_storage(open_studies(database_url(Settings()))) as storage:
        found = studies(storage)
    if as_json:
        print_json([study_document(one) for one in found])
        return
    rows = [(one.name, ", ".join(one.objectives), _states(one), len(one.best)) for one in found]
    print_table("Studies", ("name", "objectives", "trials", "best"), rows)


@app.command()
def show(name: Annotated[str, typer.Argument(help="Of the study.")], as_json: JsonOption = False) -> None:
    """The best trials of a study: of several objectives those that none other is better than in all."""
    from api.db import database_url
    from api.settings import Settings
    from api.study_store import closing_storage, open_studies
    from search.study_report import standing

    with closing_storage(open_studies(database_url(Settings()))) as storage:
        found = standing(name, storage)
    _print(found, as_json)


def _states(found: "Standing") -> str:
    return ", ".join(f"{count} {state}" for state, count in found.states.items() if count) or "none yet"


def _print(found: "Standing", as_json: bool) -> None:
    if as_json:
        print_json(study_document(found))
        return
    metrics = list(dict.fromkeys(metric for one in found.best for metric in one.metrics))
    rows = [
        (
            one.number,
            *(_number(metric, one.metrics[metric]) for metric in metrics),
            ", ".join(f"{key} {_short(value)}" for key, value in one.values.items()),
        )
        for one in found.best
    ]
    print_table(f"{found.name}: {_states(found)}", ("trial", *metrics, "values"), rows)
    if not found.best:
        out.print("no trial is within all constraints yet")


def _number(metric: str, value: float) -> str:
    return f"{value:,.0f}" if metric in ("params", "macs") else f"{value:.4g}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
