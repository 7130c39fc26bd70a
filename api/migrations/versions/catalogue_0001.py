"""The catalogue."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "catalogue_architectures",
        sa.Column("serial", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("embed_dim", sa.Integer, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
    )
    op.create_table(
        "catalogue_entries",
        sa.Column("serial", sa.Integer, primary_key=True),
        sa.Column("key", sa.String(200), nullable=False, unique=True),
        sa.Column("architecture", sa.Integer, sa.ForeignKey("catalogue_architectures.serial"), nullable=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("parent", sa.String(64), nullable=True),
        sa.Column("params", sa.BigInteger, nullable=True),
        sa.Column("macs", sa.BigInteger, nullable=True),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("lineage", sa.Text, nullable=False),
        sa.Column("figures", sa.Text, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
    op.create_index("catalogue_entries_architecture", "catalogue_entries", ["architecture"])
    op.create_index("catalogue_entries_kind", "catalogue_entries", ["kind"])
    op.create_index("catalogue_entries_parent", "catalogue_entries", ["parent"])
    op.create_index("catalogue_entries_name", "catalogue_entries", ["name"])
    op.create_table(
        "catalogue_accuracies",
        sa.Column("serial", sa.Integer, primary_key=True),
        sa.Column("entry", sa.Integer, sa.ForeignKey("catalogue_entries.serial"), nullable=False),
        sa.Column("data", sa.String(200), nullable=False),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("evidence", sa.String(20), nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("seeds", sa.Text, nullable=False),
        sa.Column("images", sa.Integer, nullable=True),
        sa.UniqueConstraint("entry", "data", "evidence", "recipe", "seeds", name="catalogue_accuracies_once"),
    )
    op.create_index("catalogue_accuracies_value", "catalogue_accuracies", ["data", "value"])
    op.create_table(
        "catalogue_targets",
        sa.Column("target", sa.String(200), primary_key=True),
        sa.Column("fingerprint", sa.String(100), nullable=False),
        sa.Column("upto", sa.Integer, nullable=False),
    )
    op.create_table(
        "catalogue_points",
        sa.Column("target", sa.String(200), primary_key=True),
        sa.Column("data", sa.String(200), primary_key=True),
        sa.Column("entry", sa.Integer, sa.ForeignKey("catalogue_entries.serial"), primary_key=True),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("params", sa.BigInteger, nullable=False),
        sa.Column("macs", sa.BigInteger, nullable=False),
        sa.Column("ms", sa.Float, nullable=False),
        sa.Column("accuracy", sa.Float, nullable=True),
    )
    covering = ["kind", "entry", "params", "macs"]
    op.create_index("catalogue_points_ms", "catalogue_points", ["target", "data", "ms", "accuracy", *covering])
    op.create_index("catalogue_points_accuracy", "catalogue_points", ["target", "data", "accuracy", "ms", *covering])


def downgrade() -> None:
    for table in ("points", "targets", "accuracies", "entries", "architectures"):
        op.drop_table(f"catalogue_{table}")
