"""What the service is told by its environment: VITFIT_DATA_DIR, VITFIT_PORT and so on. Read once, then frozen."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.sentences import sentence
from vit.errors import VitfitError

PREFIX = "VITFIT_"


class SettingsError(VitfitError, ValueError):
    """An environment variable or option that cannot be used."""


def default_data_dir() -> Path:
    """`vitfit` in the user's data folder: XDG_DATA_HOME where it is an absolute path, else ~/.local/share."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "share") / "vitfit"


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


QueueName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class Settings(BaseSettings):
    """
    Attributes:
        data_dir: the library: `tables/*.parquet`, `saliencies/*.safetensors`, `models/*.safetensors` and `datasets/*/`,
            and what is made of them.
        database_url: of PostgreSQL (postgresql://user@host/name), for several hosts; empty: SQLite in the data folder.
        shipped_tables: whether the tables and modelled devices that come with vitfit answer beside the library's.
        worker: whether the service also does the jobs that it takes on, in a process of its own; without, they wait.
        worker_idle_seconds: without a job, after which that process ends (torch fills a gigabyte); the next job starts
            another one.
        worker_dead_seconds: after which a worker that gave no sign of life has its job taken over by another one.
        queues: that jobs may name; JSON, `["cpu", "cuda", "a100"]`. Who serves one is up to `vitfit worker --queue`.
        worker_queues: those that the service's own workers serve, each in a process.
        job_timeouts: seconds by kind of job, `{"profile": 86400}`, in the place of `api.job_kinds`'.
        idempotency_hours: how long an Idempotency-Key is remembered.
        max_event_streams: of jobs' events, open at a time.
        auth: whether requests need an API key: `on`, `off`, or `auto`: where the service is bound to more than this
            machine.
        insecure: allows `auth=off` beyond this machine, where something else guards the service.
        max_rate, max_burst, max_at_once: requests a second, at once before that counts, and under way at a time, for
            each API key; 0: any. Without keys nothing is limited.
        log: `text`, lines to read, or `json`, an object a line, with a request's id, status and milliseconds.
        host, port: where to listen; port 0 takes a free one.
        max_body_bytes: of one request.
        max_upload_bytes: of one request that brings a table, model or saliency.
        blob_url: where uploads and files of jobs are kept for several machines, `s3://bucket/prefix`; empty: `blobs/`
            in the data folder.
        max_architectures, max_targets: of one estimate request.
        max_frontiers, max_frontier_files: how many frontiers stay in memory for the next budget, and on disk for the
            next start of the service.
        max_block_choices: how many sizes of one block a search may weigh.
        max_search_work: sizes times blocks times EMBED sizes of a search.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    data_dir: Annotated[Path, AfterValidator(_absolute)] = Field(default_factory=default_data_dir)
    database_url: str = Field(default="", repr=False)
    shipped_tables: bool = True
    worker: bool = True
    worker_idle_seconds: float = Field(default=60.0, gt=0)
    worker_dead_seconds: float = Field(default=20.0, ge=2.0)
    queues: tuple[QueueName, ...] = ("cpu", "cuda")
    worker_queues: tuple[QueueName, ...] = ("cpu",)
    job_timeouts: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    idempotency_hours: float = Field(default=24.0, gt=0)
    max_event_streams: int = Field(default=100, ge=0)
    auth: Literal["auto", "on", "off"] = "auto"
    insecure: bool = False
    max_rate: float = Field(default=100.0, ge=0)
    max_burst: float = Field(default=200.0, ge=1)
    max_at_once: int = Field(default=32, ge=0)
    log: Literal["text", "json"] = "text"
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65_535)
    max_body_bytes: int = Field(default=8 * 2**20, ge=1_000)
    max_upload_bytes: int = Field(default=2 * 2**30, ge=1_000)
    blob_url: str = Field(default="", repr=False)
    max_architectures: int = Field(default=5_000, ge=1)
    max_targets: int = Field(default=16, ge=1)
    max_frontiers: int = Field(default=16, ge=1)
    max_frontier_files: int = Field(default=64, ge=0)
    max_block_choices: int = Field(default=2_000_000, ge=1)
    max_search_work: int = Field(default=500_000_000, ge=1)

    def __init__(self, **values: Any) -> None:
        """
        Raises:
            SettingsError: names the variable, what it holds and what is allowed.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = PREFIX + "".join(str(part) for part in first["loc"]).upper()
            raise SettingsError(sentence(first, name)) from None
