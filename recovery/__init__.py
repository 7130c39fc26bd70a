"""How to regain accuracy after a cut: data, losses, fine-tuning. Imports only vit."""

from recovery.data import Dataset, load_dataset
from recovery.loop import TrainReport, accuracy, finetune

__all__ = ["Dataset", "TrainReport", "accuracy", "finetune", "load_dataset"]
