"""Bodies of the catalogue's questions and answers."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from api import examples
from api.catalogue_values import MOST, Found, Question
from api.questions import Budget
from api.schemas import AnyArchitecture, ArchitectureBody, Kind, MsUnit, Name, request, with_example

EntryKind = Literal[
    "preset", "published", "told", "frontier", "redistributed", "compressed", "pruned", "trained", "study"
]


class FindRequest(BaseModel):
    """Whatever is not named may be anything."""

    model_config = request(examples.CATALOGUE_FIND)

    target: Name | None = Field(None, description="Entries with a latency on this target.")
    budget_ms: Budget | None = Field(None, description="At most this latency on `target`.")
    kind: EntryKind | None = None
    data: Name | None = Field(None, description="Data set: the most accurate on it go first.")
    known: bool = Field(False, description="Only entries whose accuracy on `data` is known.")
    made_from: Name | None = Field(
        None, description="Id of an architecture, or name of an entry: what was made from it."
    )
    name: Name | None = Field(None, description="Part of a name.")
    max_params: int | None = Field(None, ge=1, le=10**15)
    max_macs: int | None = Field(None, ge=1, le=10**18)
    order: Literal["accuracy", "latency", "params", "macs", "newest"] | None = None
    limit: int = Field(20, ge=1, le=MOST)

    def to_domain(self, target: str | None, ancestor: str | None) -> Question:
        fields = self.model_dump(exclude={"target", "made_from"})
        return Question(target=target, ancestor=ancestor, **fields)


class AccuracyBody(BaseModel):
    """One figure, with what it rests on."""

    data: str
    value: float = Field(description="Top-1, from 0 to 1.")
    evidence: Literal["measured", "published"]
    recipe: str = Field(description="How the model was trained, or the source's words.")
    seeds: list[int] = Field(description="That it is the mean of; empty: not published.")
    images: int | None = Field(None, description="How many it was measured on; null: not said.")


class EntryBody(BaseModel):
    model_config = with_example(examples.CATALOGUE_ENTRY)

    entry: int
    name: str
    kind: EntryKind
    architecture_id: str | None = Field(None, description="null: figures alone, the shape was never published.")
    parent: str | None = Field(None, description="Id of the architecture that it was made from.")
    params: int | None = None
    macs: int | None = None
    source: str
    figures: dict[str, Any] = Field(description="Other printed figures, as printed.")
    created_at: str
    latency_ms: float | None = Field(None, description="On the target that was asked for.")
    accuracies: list[AccuracyBody] = Field(description="Empty: none is known.")

    @classmethod
    def of(cls, found: Found) -> Self:
        return cls.model_validate(found.to_dict())


class EntryList(BaseModel):
    model_config = with_example({"unit": "million MACs", "entries": [examples.CATALOGUE_ENTRY]})

    unit: MsUnit | None = Field(None, description="What latency_ms counts; null: no target was asked for.")
    entries: list[EntryBody] = Field(description="The best first.")


class ParetoRequest(BaseModel):
    model_config = request({"target": "macs", "data": "imagenet-1k"})

    target: Name
    data: Name
    kind: EntryKind | None = None
    limit: int = Field(200, ge=1, le=MOST)


class CompareRequest(BaseModel):
    model_config = request({"a": {"preset": "deit-s"}, "b": {"preset": "revit-s"}, "target": "macs"})

    a: AnyArchitecture
    b: AnyArchitecture
    target: Name | None = None


class DifferenceBody(BaseModel):
    dimension: str
    a: int | float | str | bool | None = Field(None, description="null: there is no such block.")
    b: int | float | str | bool | None = None
    same: bool


class CompareResponse(BaseModel):
    model_config = with_example(examples.CATALOGUE_COMPARED)

    a: str = Field(description="Id.")
    b: str
    latency_ms: tuple[float, float] | None = Field(None, description="Of both on `target`.")
    cheaper: Literal["a", "b", "same", "neither"] = Field(
        description="Which of the two costs no more in parameters, MACs and latency, and less in one of them."
    )
    dimensions: list[DifferenceBody]


class BudgetSearchRequest(BaseModel):
    """A budget, to be answered from whatever there is."""

    model_config = request({"target": "macs", "budget_ms": 3000.0, "data": "imagenet-1k"})

    target: Name
    budget_ms: Budget
    saliency: Name | None = Field(None, description="Name of a saliency of the library.")
    model: AnyArchitecture | None = Field(None, description="Whose saliency is looked for, where none is named.")
    data: Name | None = Field(None, description="Data set whose accuracy counts.")
    profile: Name = Field("nvidia", description="By which rule an architecture is made where there is no saliency.")
    limit: int = Field(10, ge=1, le=MOST)


class AnswerBody(BaseModel):
    """One way to meet the budget."""

    answered_by: Literal["frontier", "redistributed", "catalogue"] = Field(
        description="A saliency's frontier, a rule (ReViT), or an entry of the catalogue."
    )
    detail: str = Field(description="The saliency, the profile, or the entry's name.")
    latency_ms: float
    id: str
    architecture: ArchitectureBody | None = Field(None, description="null: of an entry; ask by its id.")
    kept: float | None = Field(None, description="Share of saliency that stays; of a frontier.")
    bound: float | None = Field(None, description="Nothing within the budget keeps a larger share; of a frontier.")
    entry: EntryBody | None = Field(None, description="Of the catalogue.")


class BudgetSearchResponse(BaseModel):
    model_config = with_example(examples.CATALOGUE_ANSWERS)

    target: str
    unit: MsUnit
    kind: Kind
    answers: list[AnswerBody] = Field(description="The one to take first.")
