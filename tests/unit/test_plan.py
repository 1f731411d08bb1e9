"""Which tokens of a step attend."""

from pathlib import Path

import pytest

from tests.programs import printed_by

PROGRAM = Path(__file__).with_name("plans.mojo")
LAST_TOKENS = [0, 1, 2, 20, 2**63 - 1]
# Places in the step, and in the request, of what the program's requests have.
FIRST = {token: 5 + token for token in range(3)}
THIRD = {token: 100 + token - 3 for token in range(3, 44)}


@pytest.fixture(scope="module")
def lines():
    return [line.split() for line in printed_by(PROGRAM)]


@pytest.mark.parametrize("last_tokens", LAST_TOKENS)
def test_only_the_last_tokens_of_each_request_attend(lines, last_tokens):
    want = {
        token: place
        for places in (FIRST, THIRD)
        for token, place in places.items()
        if max(places) - token < last_tokens
    }
    mine = [line for line in lines if line[0] == str(last_tokens)]
    wanted = [int(token) for _, which, token, _ in mine if which == "wanted"]
    assert wanted == list(want)
    for window in (16, 2**31):
        places = [
            (int(token), int(position))
            for _, which, token, position in mine
            if which == str(window)
        ]
        # A token that is alone has a task for each span of its keys.
        assert dict(places) == want
