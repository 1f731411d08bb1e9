"""Prompt lookup: several tokens a step, drafted from the request's own text.

Where an answer repeats its prompt or itself (an edited function, a quotation, an
agent's JSON), the tokens that followed last time are verified in one step, which
costs less than a step for each: decoding waits for the weights' memory. Drafts
that the model does not choose are thrown away, so answers stay what they are,
token for token, at any temperature.

The idea is prompt lookup decoding (A. Saxena, 2023; ``ngram`` in vLLM).
:mod:`.drafts` finds what followed last time, :mod:`.follower` makes drafts of it and
learns which names an answer changes, :mod:`.odds` decides how many are worth their
rows, :mod:`.rows` lays them out for the graph, and :mod:`.pipeline` runs the step.
"""

from .. import switches
from ..switches import is_on


def enabled() -> bool:
    """Whether ``MAX_MISTRAL_LOOKUP`` lets CPUs draft: ``on``, the default, or ``off``.

    Raises:
        UserError: (a ``ValueError``) for another value.
    """
    return is_on(switches.LOOKUP)
