"""Errors of HTTP that the routing cannot tell by itself."""

from fastapi import HTTPException


def no_question(id: str, *posted: str) -> None:
    """A GET of a path that is there for POST alone, and would otherwise be taken for an id.

    Raises:
        HTTPException: 405.
    """
    if id in posted:
        raise HTTPException(405, headers={"Allow": "POST"})
