"""What was uploaded or made by jobs: a row each; the bytes are blobs."""

import sqlalchemy as sa

from api.db import metadata

stored = sa.Table(
    "stored",
    metadata,
    sa.Column("noun", sa.String(20), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("upload", sa.String(64), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("created_at", sa.String(40), nullable=False),
    sa.Index("stored_digest", "digest"),
    sa.Index("stored_upload", "noun", "upload"),
)
"""`upload` is the sha256 of what came in, which for a table in CSV is not what is kept; `document` JSON metadata."""
