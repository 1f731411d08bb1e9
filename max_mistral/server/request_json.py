"""A request's JSON, as MAX's pydantic models are to read it.

Pydantic makes an error of each wrong item of a list, once for every type that the list
may have, and asked what is wrong an object of each error. A body may have millions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from max.pipelines.context.exceptions import InputError
from pydantic import TypeAdapter, ValidationError

from ..chat import without_nulls
from ..errors import shown
from .mistral_fields import FIELDS, as_openai

# Of the errors of a body that are looked at, that an answer lists, and of their
# letters.
_MOST_READ, _MOST, _LONGEST = 100, 5, 500

_ID = TypeAdapter(int)


class RequestModel:
    """MAX's pydantic model of a request, of JSON that clients write otherwise.

    Args:
        model: MAX's own class.

    Attributes:
        given: The JSON, as the model has read it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.given: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def _has_seed(self) -> bool:
        """Embeddings have none, and Mistral's API no such field of them either."""
        return "seed" in self._model.model_fields

    @property
    def _is_chat(self) -> bool:
        return "messages" in self._model.model_fields

    @property
    def model_fields(self) -> dict[str, Any]:
        """By these MAX's flag that lets unknown fields pass tells which they are."""
        more = list(FIELDS) if self._has_seed else []
        if self._is_chat:
            # No field of the model: it reads this one before pydantic does.
            more.append("thinking")
        return dict(self._model.model_fields) | dict.fromkeys(more)

    def model_validate(self, body: Any) -> Any:
        """Returns what the model makes of a request's JSON."""
        if isinstance(body, dict):
            check_lists(body, self._model.model_fields)
            if self._has_seed:
                body = without_nulls(as_openai(body))
            if self._is_chat and body.get("thinking", "") is None:
                body = {k: v for k, v in body.items() if k != "thinking"}
        self.given = body
        return self._model.model_validate(body)


def first_words(error: ValidationError) -> str:
    """What is wrong with a body, in few words: pydantic quotes all of it."""
    count = error.error_count()
    if count > _MOST_READ:
        return (
            f"the request's JSON has {count} errors, too many to name: values of a "
            "wrong type, or fields that are missing or unknown."
        )
    first = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [
        ": ".join([*filter(None, [".".join(map(str, each["loc"]))]), each["msg"]])
        for each in first[:_MOST]
    ]
    if count > _MOST:
        lines.append(f"and {count - _MOST} more like these")
    return "; ".join(line.rstrip(".")[:_LONGEST] for line in lines) + "."


def check_lists(body: Mapping[str, Any], fields: Collection[str]) -> None:
    """Names the first item of a wrong type in a list that may have millions.

    All that pydantic takes passes. At a tool that is no object MAX fails before this.

    Args:
        body: A request's JSON.
        fields: Those that the request may have.

    Raises:
        InputError: (a ``ValueError``) that names the item.
    """
    for field in ("messages", "tools", "prompt", "input"):
        items = body.get(field)
        if field not in fields or not isinstance(items, list):
            continue
        if field in ("messages", "tools"):
            _refuse(field, items, _other_than(dict, items), "an object")
        else:
            _check_prompts(field, items)


def _check_prompts(field: str, items: list[Any]) -> None:
    """Holds items against texts, token ids, and lists of token ids."""
    if _other_than(str, items) is None:
        return
    if _other_than(list, items) is None:
        for i, ids in enumerate(items):
            _refuse(f"{field}[{i}]", ids, _no_id(ids), "a token id")
        return
    at = _no_id(items)
    if at is None:
        return
    wanted = "a token id" if at else "a text, a token id or a list of token ids"
    # What the first one is, the others were to be.
    if isinstance(items[0], str):
        at, wanted = _other_than(str, items), "a text"
    elif isinstance(items[0], list):
        at, wanted = _other_than(list, items), "a list of token ids"
    _refuse(field, items, at, wanted)


def _refuse(field: str, items: list[Any], at: int | None, wanted: str) -> None:
    if at is not None:
        found = shown(items[at])[:_LONGEST]
        raise InputError(f"{field}[{at}] is {found}, not {wanted}.")


def _other_than(kind: type, items: list[Any]) -> int | None:
    """Returns where the first item of another type is."""
    if {type(each) for each in items} <= {kind}:
        return None
    return next(i for i, each in enumerate(items) if type(each) is not kind)


def _no_id(items: list[Any]) -> int | None:
    """Returns where the first item is that pydantic takes for no whole number."""
    if {type(each) for each in items} <= {int, bool}:
        return None
    return next((i for i, each in enumerate(items) if not _is_id(each)), None)


def _is_id(found: Any) -> bool:
    """Whether pydantic takes it for a whole number, as it does "5" and 5.0."""
    try:
        _ID.validate_python(found)
    except ValidationError:
        return False
    return True
