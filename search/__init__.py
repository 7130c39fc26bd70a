"""Which shape to keep: saliency, the frontier of a budget, ReViT. Imports only vit and latency.

what to keep     saliency (criteria; gradients, gates and watch feed them; passes and processes say how), constraints
answers          frontier, joint (several targets), greedy (NViT's ranking)
new shapes       profiles (rules by name), redistribute (ReViT of a width, of budgets, of an architecture), trends
                 (rules learned from pruned models)
studies          study_file (what is asked), study (running it), study_report (what came out), study_storage
pruning          prune (score, choose, cut, recover, in rounds), schedule, protocols (what the caller plugs in)
inside           choices (all that a model can be cut to), ladder (one block), planes (all blocks), budget,
                 frontier_storage
"""

from search.constraints import Constraints
from search.frontier import Choice, Frontier
from search.joint import JointChoice, joint_choice
from search.profiles import PROFILES, Profile, own_profile
from search.redistribute import redistribute, redistribute_like, redistribute_within, revit
from search.saliency import Saliency
from search.study_file import StudySpec, load_study
from search.trends import Trends, learn

__all__ = [
    "PROFILES",
    "Choice",
    "Constraints",
    "Frontier",
    "JointChoice",
    "Profile",
    "Saliency",
    "StudySpec",
    "Trends",
    "joint_choice",
    "learn",
    "load_study",
    "own_profile",
    "redistribute",
    "redistribute_like",
    "redistribute_within",
    "revit",
]
