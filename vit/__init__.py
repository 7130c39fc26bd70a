"""What a Vision Transformer is: shapes, costs, weights, cutting and files. Imports nothing of the other packages."""

from vit.architecture import Architecture, BlockShape, Unit
from vit.errors import VitfitError

__all__ = ["Architecture", "BlockShape", "Unit", "VitfitError"]
