"""The database's versions, one file each (Alembic); `vitfit db upgrade` runs them."""
