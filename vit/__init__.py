"""What a Vision Transformer is: shapes, costs, weights, cutting and files. Imports nothing of the other packages."""

from vit.architecture import Architecture, BlockShape, Unit
from vit.cost import macs, params
from vit.errors import VitfitError
from vit.presets import preset

__all__ = ["Architecture", "BlockShape", "Unit", "VitfitError", "macs", "params", "preset"]
