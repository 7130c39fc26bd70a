"""What fits a budget, from what there is: a frontier where a saliency exists, else ReViT and the catalogue.

Every answer says where it is from. A frontier's answer is a model's own best sizes, with a certificate; ReViT's is a
shape to train from scratch; the catalogue's was found, told or published, with the accuracy that is known of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from api.catalogue import Catalogue
from api.catalogue_values import Found, Question
from api.library import Library
from api.queries import REVIT_TEMPLATE, template_of
from latency.estimate import LatencyModel, estimate
from search.errors import BudgetError
from search.frontier import Choice
from search.profiles import NVIDIA, Profile
from search.redistribute import redistribute
from vit.architecture import Architecture
from vit.errors import UnknownNameError
from vit.presets import preset

Source = Literal["frontier", "redistributed", "catalogue"]


@dataclass(frozen=True, slots=True)
class Answer:
    """
    Attributes:
        answered_by: where it is from.
        detail: the saliency, the profile, or the entry's name.
        arch: None for an entry of the catalogue; ask for it by its id.
        choice: of a frontier.
        found: of the catalogue.
    """

    answered_by: Source
    detail: str
    latency_ms: float
    arch: Architecture | None = None
    choice: Choice | None = None
    found: Found | None = None


def answer_budget(
    library: Library,
    catalogue: Catalogue,
    target: str,
    budget_ms: float,
    *,
    saliency: str | None = None,
    model: Architecture | None = None,
    data: str | None = None,
    profile: Profile = NVIDIA,
    limit: int = 10,
) -> list[Answer]:
    """Answers to a budget on a target, the one to take first.

    Args:
        saliency: name of one in the library.
        model: whose saliency is looked for in the library, where none is named.
        data: whose accuracies the catalogue's entries are sorted by.

    Raises:
        UnknownNameError: no such target or saliency.
        BudgetError: the frontier's; or nothing at all is within the budget.
    """
    if saliency is None and model is not None:
        names = [e.name for e in library.saliencies() if e.saliency is not None and e.saliency.arch.id == model.id]
        saliency = names[0] if names else None
    if saliency is not None:
        choice = library.frontier(saliency, target).best(budget_ms)
        return [Answer("frontier", saliency, choice.latency_ms, choice.arch, choice)]
    template = model or preset(REVIT_TEMPLATE)
    latency = library.latency_model(target, template)
    known = _from_catalogue(catalogue, latency, budget_ms, data, limit)
    first = [one for one in known if data is not None and one.found and one.found.accuracy_on(data) is not None]
    rest = [one for one in known if one not in first]
    try:
        revit = _redistributed(latency, budget_ms, model, profile)
    except BudgetError as error:
        if not known:
            raise BudgetError(f"{error}; and the catalogue has nothing within it") from None
        return known
    return [*first, revit, *rest][: max(limit, 1)]


def _redistributed(latency: LatencyModel, budget_ms: float, model: Architecture | None, profile: Profile) -> Answer:
    template = model if model is not None and model.depth >= 6 else template_of(latency)
    arch = redistribute(latency, budget_ms, template, template.depth, profile)
    return Answer("redistributed", profile.name, estimate(latency, arch).latency_ms, arch)


def _from_catalogue(
    catalogue: Catalogue, latency: LatencyModel, budget_ms: float, data: str | None, limit: int
) -> list[Answer]:
    catalogue.price(latency)
    found = catalogue.find(Question(target=latency.target.slug, budget_ms=budget_ms, data=data, limit=limit))
    return [Answer("catalogue", one.name, one.latency_ms, found=one) for one in found if one.latency_ms is not None]


def resolve(names: Sequence[str], library: Library, catalogue: Catalogue) -> list[Architecture]:
    """Architectures by the names of the catalogue, its ids, presets and files.

    Raises:
        UnknownNameError: none of these.
    """
    from api.queries import resolve_architecture

    found = []
    for name in names:
        try:
            found.append(catalogue.architecture(name))
        except UnknownNameError:
            try:
                found.append(resolve_architecture(name))
            except UnknownNameError:
                raise UnknownNameError(
                    "architecture", name, ("an id or a name of the catalogue", "a preset", "a file", "a timm name")
                ) from None
    return found
