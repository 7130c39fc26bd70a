"""Workers, events, files and idempotency keys of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_workers",
        sa.Column("executor", sa.String(100), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("host", sa.String(200), nullable=False),
        sa.Column("queue", sa.String(60), nullable=False),
        sa.Column("job", sa.String(32), nullable=True),
        sa.Column("beat", sa.BigInteger, nullable=False),
        sa.Column("beat_at", sa.String(40), nullable=False),
        sa.Column("started_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "job_events",
        sa.Column("job", sa.String(32), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "job_files",
        sa.Column("job", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(300), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("job_files_digest", "job_files", ["digest"])
    op.create_table(
        "job_keys",
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("job", sa.String(32), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("job_keys_created_at", "job_keys", ["created_at"])


def downgrade() -> None:
    for table in ("keys", "files", "events", "workers"):
        op.drop_table(f"job_{table}")
