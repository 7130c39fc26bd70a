"""`profile` as a job: one step, whose journal survives kill -9, so that no point is timed twice."""

from collections.abc import Mapping

from api.job_requests import ProfileJobRequest
from api.job_saving import Context, Document, Progress, Step, save_as
from api.profiling import profile_plan, run_profile
from latency.grid import GRIDS
from latency.runtimes import find_device
from latency.storage import load_table


def measure(context: Context, made: Document, progress: Progress) -> Document:
    body = ProfileJobRequest.model_validate(context.document)
    device = find_device(body.device, body.threads)
    auto = body.points == "auto"
    plan = profile_plan(
        body.architecture.to_domain(),
        device,
        runtime=body.runtime,
        dtype=body.dtype,
        batch=body.batch,
        grid=None if body.grid is None else GRIDS[body.grid],
        points=body.points if isinstance(body.points, int) else None,
        error=body.error if auto else None,
        rounds=body.rounds,
        seed=body.seed,
    )
    out = context.folder / "table.parquet"
    if not out.exists():  # of an attempt that was killed after its last point
        for visit in run_profile(plan, device, out):
            progress("profile", visit.done, visit.total)
    table = load_table(out)
    save_as(context, "table", out)
    return {
        "target": table.target.slug,
        "provenance": table.provenance.to_dict(),
        "points": len(table.grid),
        "files": {"table": out.name},
        "leaves": [out.name],
    }


STEPS: Mapping[str, Step] = {"measure": measure}
