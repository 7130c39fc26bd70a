"""In order of `down_revision`. A file that was released is never changed again."""
