"""Studies: what they ask, how far they are, and what they found. A job of kind `study` runs one."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from api import examples_jobs
from api.dependencies import SettingsDependency
from api.errors import NoSuchResourceError
from api.job_bodies import StudyBody, TrialBody
from api.problems import INVALID_REQUEST, NOT_FOUND, NOT_READY, documented
from api.schemas import with_example
from api.study_document import study_document, trial_document

router = APIRouter(prefix="/v1/studies", tags=["studies"])


class StudyList(BaseModel):
    model_config = with_example({"studies": [examples_jobs.STUDY]})

    studies: list[StudyBody] = Field(description="By name.")


class TrialList(BaseModel):
    model_config = with_example({"trials": [examples_jobs.TRIAL], "next": None})

    trials: list[TrialBody] = Field(description="Those that ended well, by number.")
    next: int | None = Field(None, description="`after` of the next page; null: there is none.")


@router.get("", responses=documented(NOT_READY))
def list_studies(settings: SettingsDependency) -> StudyList:
    """Every study, how far it is, and its best trials."""
    from api.db import database_url
    from api.study_store import closing_storage, open_studies
    from search.study_report import studies

    with closing_storage(open_studies(database_url(settings))) as storage:
        return StudyList(studies=[StudyBody.model_validate(study_document(one)) for one in studies(storage)])


@router.get("/{name}", responses=documented(NOT_FOUND, NOT_READY))
def get_study(name: str, settings: SettingsDependency) -> StudyBody:
    """One study: how far it is, and its best trials; of several objectives, the Pareto set."""
    from api.db import database_url
    from api.study_store import closing_storage, open_studies
    from search.errors import StudyError
    from search.study_report import standing

    with closing_storage(open_studies(database_url(settings))) as storage:
        try:
            return StudyBody.model_validate(study_document(standing(name, storage)))
        except StudyError as error:
            raise NoSuchResourceError(str(error)) from None


@router.get("/{name}/trials", responses=documented(INVALID_REQUEST, NOT_FOUND, NOT_READY))
def list_trials(
    name: str,
    settings: SettingsDependency,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int, Query(ge=-1, le=10**9, description="Only trials of higher numbers.")] = -1,
) -> TrialList:
    """A study's trials that ended well, in pages."""
    from api.db import database_url
    from api.study_store import closing_storage, open_studies
    from search.errors import StudyError
    from search.study_report import complete_trials

    with closing_storage(open_studies(database_url(settings))) as storage:
        try:
            found = complete_trials(name, storage)
        except StudyError as error:
            raise NoSuchResourceError(str(error)) from None
    left = sorted((one for one in found if one.number > after), key=lambda one: one.number)
    page = [TrialBody.model_validate(trial_document(one)) for one in left[:limit]]
    return TrialList(trials=page, next=page[-1].number if len(left) > limit else None)
