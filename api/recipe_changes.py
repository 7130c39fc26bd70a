"""A recipe with other numbers, as commands and jobs ask for it."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from recovery.recipes import Recipe


def recipe_with(
    known: Recipe, changes: Mapping[str, Any], *, steps: int | None = None, epochs: int | None = None
) -> Recipe:
    """
    Args:
        changes: by the names of a recipe's fields; a learning rate is taken as it is, whatever the batch size.
        steps, epochs: its length, at most one of them.

    Raises:
        TrainingError: a number that no recipe has, or outside its range.
    """
    found = known if steps is None and epochs is None else known.lasting(steps=steps, epochs=epochs)
    given = dict(changes)
    if "lr" in given:
        given.setdefault("lr_batch", None)
    changed = Recipe.from_dict(found.to_dict() | given)
    others = [field.name for field in fields(Recipe) if getattr(changed, field.name) != getattr(known, field.name)]
    if not others or not known.source:
        return changed
    return replace(changed, source=f"{known.source}, with other {', '.join(others)}")
