"""Thinking told apart by token ids, however an answer is cut into chunks."""

import pytest

from max_mistral.chat.reasoning import MistralReasoningParser

START, END, CALLS, TURN = 34, 35, 9, 4
PARSER = MistralReasoningParser(START, END, CALLS, [TURN])
INERT = MistralReasoningParser(None, None)


def split(parser, tokens, size, prompt=()):
    """The thinking and the content of an answer, as MAX's server asks for them."""
    thinking, content = [], []
    inside = parser.will_reason_after_prompt(prompt)
    for at in range(0, len(tokens), size):
        chunk = tokens[at : at + size]
        delta = parser.stream(chunk, is_currently_reasoning=inside)
        inside = delta.is_still_reasoning
        thinking += delta.span.extract_reasoning(chunk)
        content += delta.span.extract_content(chunk)
    return thinking, content


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("tokens", "thinking", "content"),
    [
        ([START, 70, 71, END, 72], [70, 71], [72]),
        ([START, 70, 71], [70, 71], []),
        ([START, END, 72], [], [72]),
        ([70, 71], [], [70, 71]),
        ([START, 70, CALLS, 71], [70], [CALLS, 71]),
        ([70, START, 71, END, 72], [71], [70, 72]),
        ([START, 70, END, START, 71, 72, END, 73], [70, 71, 72], [73]),
        ([START, 70, START, 71, END, 72], [70, 71], [72]),
        ([70, END, 71], [], [70, END, 71]),
        ([], [], []),
    ],
)
def test_thinking_wherever_it_is_cut(tokens, thinking, content, size):
    assert split(PARSER, tokens, size) == (thinking, content)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_prompt_that_begins_the_thinking(size):
    assert split(PARSER, [70, END, 71], size, [TURN, START]) == ([70], [71])
    assert split(PARSER, [70, 71, 72], size, [TURN, START]) == ([70, 71, 72], [])


@pytest.mark.parametrize(
    ("prompt", "thinks"),
    [
        ([], False),
        ([1, TURN], False),
        ([1, TURN, START], True),
        ([START, 70, END, TURN], False),
        ([START, 70, TURN], False),  # an earlier turn's, never closed
        ([START, 70, END, TURN, START, 71], True),
    ],
)
def test_the_last_turn_of_the_prompt_decides(prompt, thinks):
    assert PARSER.will_reason_after_prompt(prompt) is thinks


def test_inert_without_the_tokens():
    assert split(INERT, [START, 70, END], 1, [START]) == ([], [START, 70, END])
