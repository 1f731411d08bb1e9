"""Prompt lookup: several tokens a step, drafted from the request's own text.

Where an answer repeats its prompt or itself (an edited function, a quotation, an
agent's JSON), the tokens that followed last time are verified in one step, which
costs less than a step for each: decoding waits for the weights' memory. Drafts
that the model does not choose are thrown away, so answers stay what they are,
token for token, at any temperature.

The idea is prompt lookup decoding (A. Saxena, 2023; ``ngram`` in vLLM).
:mod:`.drafts` finds drafts, :mod:`.odds` decides how many are worth their rows,
:mod:`.rows` lays them out for the graph, and :mod:`.pipeline` runs the step.
"""

import os

from ..errors import UserError


def enabled() -> bool:
    """Whether ``MAX_MISTRAL_LOOKUP`` lets CPUs draft: ``on``, the default, or ``off``.

    Raises:
        UserError: (a ``ValueError``) for another value.
    """
    found = os.environ.get("MAX_MISTRAL_LOOKUP", "on")
    if found not in ("on", "off"):
        raise UserError(f"MAX_MISTRAL_LOOKUP is {found!r}. Set it to on or off.")
    return found == "on"
