"""How Alembic reaches the database: over the connection that `api.db.upgrade` hands it, in its transaction."""

from alembic import context

import api.db_jobs
import api.db_keys
import api.db_stored  # noqa: F401 - their tables are in `metadata` then
from api.db import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    include_name=lambda name, kind, _parents: kind != "table" or name in metadata.tables,
)
with context.begin_transaction():
    context.run_migrations()
