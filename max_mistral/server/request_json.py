"""A request's JSON, as MAX's pydantic models are to read it.

Pydantic makes an error of each wrong item, once for every type that it may have. A body
may have millions, so lists are read to the first one, and objects have a limit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from max.pipelines.context.exceptions import InputError
from pydantic import ValidationError
from pydantic_core import SchemaValidator

from ..chat import without_nulls
from .mistral_fields import FIELDS, as_openai

MOST_NAMES = 1024
"""Of an object whose names are a client's."""

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
            InputError: (a ``ValueError``) if an object has too many names.
            ValidationError: (a ``ValueError``) that says what is wrong; of a list the
                first item.
        """
        if isinstance(body, dict):
            _check_names(body)
            if self._has_seed:
                body = without_nulls(as_openai(body))
            if self._is_chat and body.get("thinking", "") is None:
                body = {k: v for k, v in body.items() if k != "thinking"}
        self.given = body
        return _reader(self._model).validate_python(body)


@functools.cache
def _reader(model: Any) -> SchemaValidator:
    """Reads as a pydantic model does, but a list ends at its first wrong item."""
    schema = _failing_fast(model.__pydantic_core_schema__)
    try:
        # Or it would be the model's own one, whatever the schema.
        return SchemaValidator(schema, _use_prebuilt=False)
    except TypeError:  # an older pydantic
        return SchemaValidator(schema)


def _failing_fast(schema: Any) -> Any:
    if isinstance(schema, dict):
        made = {key: _failing_fast(value) for key, value in schema.items()}
        return made | {"fail_fast": True} if made.get("type") == "list" else made
    if isinstance(schema, list | tuple):
        return type(schema)(map(_failing_fast, schema))
    return schema


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


def _check_names(body: Mapping[str, Any]) -> None:
    for where, found in _objects(body):
        if isinstance(found, dict) and len(found) > MOST_NAMES:
            raise InputError(
                f"{where} has {len(found)} fields, but may have {MOST_NAMES}."
            )


def _objects(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Those of a request each of whose fields pydantic reads, whatever its name."""
    yield "the request", body
    for field in ("logit_bias", "metadata"):
        yield field, body.get(field)
    messages = body.get("messages")
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            yield f"messages[{i}].audio", message.get("audio")
