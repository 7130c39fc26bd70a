"""Latency tables that come with vitfit, and what they were made of; README.md says how each was made."""

from pathlib import Path

FOLDER = Path(__file__).parent


def tables() -> list[Path]:
    """The tables' files, by name."""
    return sorted(FOLDER.glob("*.parquet"))
