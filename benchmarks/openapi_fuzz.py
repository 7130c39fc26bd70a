"""Does the service answer as its OpenAPI document says, whatever it is asked?

    $ python benchmarks/openapi_fuzz.py [--quick] [--cases 5000] [--seed 0]

Schemathesis makes requests from the document alone: what it allows and what it does not, for every operation in turn,
and chains of them in which an answer's ids are asked for next. The service is one over a small library, asked in this
process, without a worker. No answer may be a server error, of a status, type or shape that the document does not name,
or accept what the document forbids.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import schemathesis
from common import print_goal, print_machine
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from api.app import create_app
from api.settings import Settings

sys.path.append(str(Path(__file__).parents[1]))  # the library is the tests'

from tests.api.factories import fill

CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
JUDGES = ("/v1/tables/validate",)
"""Operations whose answer to a malformed body is 200 and what is wrong with it."""
CHAINED, STEPS = 0.2, 8
"""Share of the cases that are chains' steps, and steps in a chain."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few cases")
    parser.add_argument("--cases", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cases = 60 if options.quick else options.cases
    print_machine("schemathesis", "hypothesis", "fastapi")
    print(f"seed {options.seed}")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as text, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        app = create_app(Settings(data_dir=fill(Path(text) / "library"), worker=False))
        seen, failed = Counter[int](), list[tuple[str, str]]()
        start = options.seed
        while sum(seen.values()) < cases and not failed:  # of some operations there are few different ones
            some, failed = ask(schemathesis.openapi.from_asgi("/openapi.json", app), cases, start)
            seen += some
            start += 1
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(seen.items()))
    print(f"{sum(seen.values()):,} requests in {time.perf_counter() - started:.0f} s; {statuses}")
    for what, why in failed:
        print(f"FAILED {what}\n{why}")
    if not options.quick:
        print_goal("openapi-requests", sum(seen.values()), 5_000, at_least=True)
    print_goal("openapi-failures", len(failed), 0, at_least=False)


def ask(schema: schemathesis.BaseSchema, cases: int, start: int) -> tuple[Counter[int], list[tuple[str, str]]]:
    """Statuses of all answers, and what went wrong where."""
    seen, failed = Counter[int](), list[tuple[str, str]]()

    def checks(case: schemathesis.Case) -> list[object]:
        left_out = {"negative_data_rejection"} if case.operation.path in JUDGES else set()
        return CHECKS.get_by_names([name for name in CHECKED if name not in left_out])  # type: ignore[return-value]

    @schemathesis.hook
    def after_call(context: object, case: object, response: object) -> None:
        seen[response.status_code] += 1  # type: ignore[attr-defined]

    operations = [found.ok() for found in schema.get_all_operations()]
    each = max(1, round(cases * (1 - CHAINED) / len(operations) / len(GenerationMode)))
    how = {
        "deadline": None,
        "database": None,
        "phases": (Phase.generate,),
        "suppress_health_check": list(HealthCheck),
    }
    for operation in operations:
        for mode in GenerationMode:
            try:
                strategy = operation.as_strategy(generation_mode=mode)

                @seed(start)
                @settings(max_examples=each, **how)
                @given(case=strategy)
                def conforms(case: schemathesis.Case) -> None:
                    case.call_and_validate(checks=checks(case))

                conforms()
            except (Exception, BaseExceptionGroup) as error:
                if type(error).__name__ == "Unsatisfiable":  # nothing about it can be malformed
                    continue
                failed.append((f"{operation.label} ({mode.value})", str(error)[:2_000]))

    class Chains(schema.as_state_machine()):  # type: ignore[misc]
        def validate_response(self, response: object, case: schemathesis.Case, **_: object) -> None:
            case.validate_response(response, checks=checks(case))

    chains = max(1, round(cases * CHAINED / STEPS))
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            seed(start)(Chains), settings=settings(max_examples=chains, stateful_step_count=STEPS, **how)
        )
    except (Exception, BaseExceptionGroup) as error:
        failed.append(("chains", str(error)[:2_000]))
    return seen, failed


if __name__ == "__main__":
    main()
