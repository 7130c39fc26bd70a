"""Which shape to keep: saliency, the frontier of a budget, ReViT. Imports only vit and latency.

what to keep     saliency (criteria; gradients, gates and watch feed them; passes and processes say how), constraints
answers          frontier, joint (several targets), greedy (NViT's ranking), redistribute (ReViT)
pruning          prune (score, choose, cut, recover, in rounds), schedule, protocols (what the caller plugs in)
inside           choices (all that a model can be cut to), ladder (one block), planes (all blocks), budget,
                 frontier_storage
"""

from search.constraints import Constraints
from search.frontier import Choice, Frontier
from search.joint import JointChoice, joint_choice
from search.redistribute import revit
from search.saliency import Saliency

__all__ = ["Choice", "Constraints", "Frontier", "JointChoice", "Saliency", "joint_choice", "revit"]
