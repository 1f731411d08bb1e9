"""Which tokens of a step attend."""

from pathlib import Path

import pytest
from mojo.run import subprocess_run_mojo

from max_mistral import kernels

PROGRAM = Path(__file__).with_name("plans.mojo")
LAST_TOKENS = [0, 1, 2, 20, 2**63 - 1]
# Places in the step, and in the request, of what the program's requests have.
FIRST = {token: 5 + token for token in range(3)}
THIRD = {token: 100 + token - 3 for token in range(3, 44)}


@pytest.fixture(scope="module")
def lines():
    command = ["run", "-I", str(Path(kernels.__file__).parent.parent), str(PROGRAM)]
    done = subprocess_run_mojo(command, check=True, capture_output=True, text=True)
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("last_tokens", LAST_TOKENS)
def test_only_the_last_tokens_of_each_request_attend(lines, last_tokens):
    want = dict(list(FIRST.items())[-last_tokens:] + list(THIRD.items())[-last_tokens:])
    if last_tokens == 0:
        want = {}
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
