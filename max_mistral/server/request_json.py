"""A request's JSON, as MAX's pydantic models are to read it.

Pydantic makes an error of each wrong item, once for every type that it may have. A body
may have millions, so lists are read to the first one, and objects have a limit.
"""

from __future__ import annotations

import functools
from typing import Any

from pydantic import ValidationError
from pydantic_core import SchemaValidator
from pydantic_core.core_schema import no_info_before_validator_function

from ..chat import without_nulls
from .mistral_fields import FIELDS, as_openai

MOST_NAMES = 1024
"""The most fields that an object of a request may have, where pydantic reads each."""

# In place of the messages where there are tokens: the model requires some.
_NO_MESSAGES = [{"role": "user", "content": ""}]
# Of the errors of a body that are looked at, that an answer lists, and of their
# letters.
_MOST_READ, _MOST, _LONGEST = 100, 5, 500


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
        """Returns what the model makes of a request's JSON.

        Raises:
            ValidationError: (a ``ValueError``) that says what is wrong; of a list the
                first item.
        """
        if isinstance(body, dict):
            if self._has_seed:
                body = without_nulls(as_openai(body))
            if self._is_chat and body.get("thinking", "") is None:
                body = {k: v for k, v in body.items() if k != "thinking"}
            no_messages = self._is_chat and body.get("messages") in (None, [])
            if no_messages and body.get("prompt_tokens"):
                body = body | {"messages": _NO_MESSAGES}
        self.given = body
        return _reader(self._model).validate_python(body)


@functools.cache
def _reader(model: Any) -> SchemaValidator:
    """Reads as a pydantic model does, but looks at few of many wrong things."""
    schema = _bounded(model.__pydantic_core_schema__)
    try:
        # Or it would be the model's own one, whatever the schema.
        return SchemaValidator(schema, _use_prebuilt=False)
    except TypeError:  # an older pydantic
        return SchemaValidator(schema)


def _bounded(schema: Any) -> Any:
    """A list ends at its first wrong item, and an object has few fields."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_bounded, schema))
    if not isinstance(schema, dict):
        return schema
    made = {key: _bounded(value) for key, value in schema.items()}
    kind = made.get("type")
    if kind == "list":
        made["fail_fast"] = True
    values = made.get("values_schema", {"type": "any"})
    if kind in ("typed-dict", "model-fields") or (
        kind == "dict" and values["type"] != "any"
    ):
        # What stands for it elsewhere now stands for the check as well.
        ref = made.pop("ref", None)
        return no_info_before_validator_function(_check_names, made, ref=ref)
    return made


def _check_names(found: Any) -> Any:
    if isinstance(found, dict) and len(found) > MOST_NAMES:
        raise ValueError(f"{len(found)} fields; an object may have {MOST_NAMES}")
    return found


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
