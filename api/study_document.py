"""A study as a JSON document: how far it is, and its best trials."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.study_report import Standing, Trial


def study_document(found: "Standing") -> dict[str, Any]:
    return {
        "study": found.name,
        "objectives": list(found.objectives),
        "states": dict(found.states),
        "best": [trial_document(one) for one in found.best],
        "asks": dict(found.identity),
    }


def trial_document(one: "Trial") -> dict[str, Any]:
    return {
        "number": one.number,
        "values": dict(one.values),
        "metrics": dict(one.metrics),
        "architecture_id": one.arch.id,
        "architecture": one.arch.to_dict(),
        "retry_of": one.retry_of,
    }
