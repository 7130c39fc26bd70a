"""How to regain accuracy after a cut: data, losses, recipes, training. Imports only vit.

Recipes are plain values, read without torch, so this imports nothing else: the rest is in its modules.
"""

from recovery.recipes import RECIPES, Recipe

__all__ = ["RECIPES", "Recipe"]
