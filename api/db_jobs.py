"""The jobs' own tables, beside DBOS's: who works, what happened, which files came of it, which keys were used.

A job itself is DBOS's row. What is here may be lost without a job being lost.
"""

import sqlalchemy as sa

from api.db import metadata

workers = sa.Table(
    "job_workers",
    metadata,
    sa.Column("executor", sa.String(100), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("host", sa.String(200), nullable=False),
    sa.Column("queue", sa.String(60), nullable=False),
    sa.Column("job", sa.String(32)),
    sa.Column("beat", sa.BigInteger, nullable=False),
    sa.Column("beat_at", sa.String(40), nullable=False),
    sa.Column("started_at", sa.String(40), nullable=False),
)
"""Processes that do jobs. `beat` grows while one lives; the times are for people, no decision rests on a clock."""

events = sa.Table(
    "job_events",
    metadata,
    sa.Column("job", sa.String(32), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("created_at", sa.String(40), nullable=False),
)

files = sa.Table(
    "job_files",
    metadata,
    sa.Column("job", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(300), primary_key=True),
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Index("job_files_digest", "digest"),
)
"""Files of jobs, by name in the job's folder; their bytes are blobs."""

keys = sa.Table(
    "job_keys",
    metadata,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("job", sa.String(32), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Index("job_keys_created_at", "created_at"),
)
"""Idempotency keys: what was asked with them, and the job that came of it. `created_at` in seconds since 1970."""
