"""`study` as a job: one step, whose trials are in the database as they end, so that none is tried twice."""

import json
from collections.abc import Mapping
from dataclasses import replace

from api.catalogue import Catalogue
from api.catalogue_sources import of_study
from api.db import Database, database_url
from api.job_inputs import data_source, model_path
from api.job_requests import StudyJobRequest
from api.job_saving import Context, Document, Progress, Step
from api.study_document import study_document
from api.study_run import evaluator_of
from api.study_store import closing_storage, open_studies
from search.study import run_study
from search.study_file import StudySpec, parse_study
from search.study_report import standing
from vit.presets import PRESETS


def trials(context: Context, made: Document, progress: Progress) -> Document:
    body = StudyJobRequest.model_validate(context.document)
    spec = parse_study(json.dumps(body.study))
    if not spec.in_memory:
        import torch

        torch.set_num_threads(body.threads)
    url = database_url(context.settings)
    evaluator = evaluator_of(_in_library(spec), context.library)
    with closing_storage(open_studies(url)) as storage:
        progress("trials", 0, spec.trials)
        for ended in run_study(spec, storage, evaluator):
            progress("trials", min(ended.done, ended.total), ended.total)
            if ended.state == "failed":
                context.log(f"trial failed: {ended.error}")
        found = standing(spec.name, storage)
    database = Database(url)
    try:
        Catalogue(database).add(of_study(found, spec.seed))
    finally:
        database.close()
    return {**study_document(found), "files": {}, "leaves": []}


def _in_library(spec: StudySpec) -> StudySpec:
    """With names of the library as files relative to the data folder."""
    data = None if spec.data is None else data_source(spec.data)
    model = spec.model
    if model is not None and not (spec.make == "redistribute" and model in PRESETS):
        model = str(model_path(model))
    return replace(spec, data=data, model=model)


STEPS: Mapping[str, Step] = {"trials": trials}
