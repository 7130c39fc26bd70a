"""API keys, and what was done with them."""

import sqlalchemy as sa

from api.db import metadata

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("scope", sa.String(10), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("revoked_at", sa.BigInteger),
    sa.Column("used_at", sa.BigInteger),
)
"""Times are seconds since 1970. `digest` is the sha256 of the whole key."""

audit_events = sa.Table(
    "audit_events",
    metadata,
    sa.Column("serial", sa.Integer, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("key", sa.String(16)),
    sa.Column("client", sa.String(60), nullable=False),
    sa.Column("method", sa.String(10), nullable=False),
    sa.Column("path", sa.String(300), nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("request", sa.String(64), nullable=False),
    sa.Index("audit_events_at", "at"),
)
"""Every request that changes something, and every one that was refused for its key."""
