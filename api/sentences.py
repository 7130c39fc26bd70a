"""What is wrong with a field and what is allowed, in one sentence, from pydantic's errors."""

import json
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag
from pydantic_core import ErrorDetails

Context = Mapping[str, Any]

_ALLOWED: dict[str, Callable[[Context], str]] = {
    "bool_parsing": lambda _: "true or false",
    "bool_type": lambda _: "true or false",
    "dict_type": lambda _: "an object",
    "finite_number": lambda _: "a finite number",
    "float_parsing": lambda _: "a number",
    "float_type": lambda _: "a number",
    "greater_than": lambda context: f"above {context['gt']:g}",
    "greater_than_equal": lambda context: f"at least {context['ge']}",
    "int_from_float": lambda _: "a whole number",
    "int_parsing": lambda _: "a whole number",
    "int_parsing_size": lambda _: "a whole number of fewer digits",
    "int_type": lambda _: "a whole number",
    "less_than": lambda context: f"below {context['lt']:g}",
    "less_than_equal": lambda context: f"at most {context['le']}",
    "list_type": lambda _: "a list",
    "literal_error": lambda context: f"one of {context['expected'].replace(' or ', ', ')}",
    "model_attributes_type": lambda _: "an object",
    "model_type": lambda _: "an object",
    "path_type": lambda _: "a path",
    "string_too_long": lambda context: f"text of at most {context['max_length']} characters",
    "string_too_short": lambda context: f"text of at least {context['min_length']} characters",
    "string_type": lambda _: "text",
    "string_unicode": lambda _: "text in valid Unicode",
}
"""Error type of pydantic -> what would have been right."""


def location(loc: Sequence[int | str]) -> str:
    """`architectures[0].blocks[2].qk_dim`; "" is the whole body. Tags of unions, `<...>`, are left out."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not is_tag(part):
            text += f".{part}" if text else part
    return text


def is_tag(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith("<") and part.endswith(">")


def sentence(error: ErrorDetails, field: str, fields: Sequence[str] = ()) -> str:
    """
    Args:
        error: of pydantic.
        field: how the sentence calls the culprit; "" is the request body.
        fields: what would be allowed instead of an unknown field.
    """
    name, kind, context = field or "the request body", error["type"], error.get("ctx", {})
    if kind in _ALLOWED:
        return f"{name} must be {_ALLOWED[kind](context)}, got {shown(error['input'])}"
    match kind:
        case "missing":
            return f"{name} is required"
        case "extra_forbidden":
            return f"{name} is no field here" + (f"; the fields are {', '.join(fields)}" if fields else "")
        case "too_short":
            return f"{name} must have at least {_entries(context['min_length'])}, got {context['actual_length']}"
        case "too_long":
            return f"{name} must have at most {_entries(context['max_length'])}, got {_more(error, context)}"
        case "union_tag_invalid":
            allowed = context["expected_tags"]
            return f"{name} must be one of {allowed}, got {shown(context['tag'])}"
        case "union_tag_not_found":
            return f"{name} is required"
        case "string_pattern_mismatch":
            return f"{name} must be text like {context['pattern']}, got {shown(error['input'])}"
        case "value_error":
            return str(context["error"])
    return f"{name}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def _more(error: ErrorDetails, context: Context) -> str:
    given = error["input"]
    return str(context["actual_length"] or (len(given) if isinstance(given, Sequence) else "more"))


def shown(value: object, limit: int = 60) -> str:
    """A JSON value as its sender spelled it; long ones are cut, containers named."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bytes):
        return "bytes"
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else f"{text[:limit]}..."


def fields_at(body: Any, loc: Sequence[int | str]) -> tuple[str, ...]:
    """Names of the fields of the object that holds the last part of `loc`, starting from the type `body`."""
    for part in loc[:-1]:
        body = _step(body, part)
    body = _plain(body)
    return tuple(body.model_fields) if isinstance(body, type) and issubclass(body, BaseModel) else ()


def _step(annotation: Any, part: int | str) -> Any:
    annotation = _plain(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field else None
    if isinstance(part, int):
        return next(iter(get_args(annotation)), None)
    tagged = (a for a in get_args(annotation) if get_origin(a) is Annotated)
    return next((a for a in tagged if Tag(str(part)) in a.__metadata__), None)


def _plain(annotation: Any) -> Any:
    """Without Annotated and None."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        others = [a for a in get_args(annotation) if a is not type(None)]
        if len(others) == 1:
            return _plain(others[0])
    return annotation
