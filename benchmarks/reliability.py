"""Does every job end exactly once with the right result, whatever is killed?

    $ python benchmarks/reliability.py --jobs 50 --kills 20 --seed 0

Small real jobs (saliencies, prunings with training, studies, exports) on two workers, which are killed with -9 one
after the other at random moments, on SQLite and on PostgreSQL. A job is right when it ended as done and holds what jobs
that asked for the same hold, to the bit; when a study has just as many trials as were asked for; when what was to be
saved in the library is there. Then the service is asked every tenth of a second while its PostgreSQL is stopped and
started: every answer is the right one or 503 as problem+json, and the jobs that were under way end.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from api.jobs import Jobs
from benchmarks.common import print_goal, print_machine
from tests import postgresql
from tests.reliability.harness import (
    ROOT,
    Cluster,
    cluster,
    faults,
    kill_at_random,
    small_jobs,
    submit_all,
    wait_for,
)

SECONDS_A_JOB = 30


def kills(name: str, url: str, count: int, most: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder), url) as running:
        jobs, documents = Jobs.of(running.settings), small_jobs(count)
        began = time.monotonic()
        for _ in range(2):
            running.start_worker()
        ids = submit_all(jobs, documents)
        killed = kill_at_random(running, jobs, ids, most, 2, seed)
        found = wait_for(jobs, ids, SECONDS_A_JOB * count)
        wrong = faults(found, documents, running.folder)
        jobs.close()
    print(f"{name}: {count} jobs, {killed} workers killed with -9, {time.monotonic() - began:.0f} s; seed {seed}")
    for line in wrong:
        print(f"  {line}")
    print_goal(f"jobs-done-{name}", sum(job.state == "done" for job in found), count, at_least=True)
    print_goal(f"jobs-lost-or-wrong-{name}", len(wrong), 0, at_least=False)


def outage(server: postgresql.Server, count: int, seconds: float) -> None:
    with (
        postgresql.database(server.url) as url,
        tempfile.TemporaryDirectory() as folder,
        cluster(Path(folder), url) as running,
    ):
        jobs, documents = Jobs.of(running.settings), small_jobs(count)
        process, address = service(running)
        try:
            running.start_worker()
            ids = submit_all(jobs, documents)
            time.sleep(3)
            answers = {200: 0, 503: 0}
            with httpx.Client(base_url=address, timeout=30) as client:
                _ask(client, 1.0, answers)
                server.stop()
                _ask(client, seconds, answers)
                server.start()
                back = time.monotonic()
                while client.get("/v1/jobs").status_code != 200:
                    time.sleep(0.05)
                recovered = time.monotonic() - back
                _ask(client, 1.0, answers)
            found = wait_for(jobs, ids, SECONDS_A_JOB * count)
            wrong = faults(found, documents, running.folder)
        finally:
            process.kill()
            process.wait()
            jobs.close()
    others = {status: answers[status] for status in answers if status not in (200, 503)}
    print(f"PostgreSQL stopped for {seconds:g} s: {answers[200]} answers, {answers[503]} problems 503, others {others}")
    for line in wrong:
        print(f"  {line}")
    print_goal("outage-wrong-answers", sum(others.values()), 0, at_least=False)
    print_goal("outage-seconds-to-recover", recovered, 5, at_least=False)
    print_goal("outage-jobs-lost-or-wrong", len(wrong), 0, at_least=False)


def _ask(client: httpx.Client, seconds: float, answers: dict[int, int]) -> None:
    """Count the answers by status; a 503 that is no problem+json, and no answer at all, as 0."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            answer = client.get("/v1/jobs")
        except httpx.HTTPError:
            status = 0
        else:
            status = answer.status_code
            if status == 503 and answer.headers["content-type"] != "application/problem+json":
                status = 0
        answers[status] = answers.get(status, 0) + 1
        time.sleep(0.1)


def service(running: Cluster) -> tuple["subprocess.Popen[str]", str]:
    """The service without workers of its own, and its address."""
    from tests.api.test_service_socket import first_match

    command = [sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app", "--port", "0", "--no-use-colors"]
    command += ["--no-access-log"]
    environment = {**running.environment, "VITFIT_WORKER": "false"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = first_match(process.stderr, r"running on (http://127\.0\.0\.1:\d+)")
    return process, address


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="4 jobs and 1 kill, for the tests")
    given = parser.parse_args()
    count, most, away = (4, 1, 2.0) if given.quick else (given.jobs, given.kills, 10.0)
    print_machine("dbos", "sqlalchemy", "psycopg")
    kills("sqlite", "", count, most, given.seed)
    if not postgresql.PROGRAMS:
        print("PostgreSQL is not installed; its goals are not measured")
        return
    with postgresql.restartable() as server:
        with postgresql.database(server.url) as url:
            kills("postgresql", url, count, most, given.seed)
        outage(server, max(2, count // 5), away)


if __name__ == "__main__":
    main()
