import pytest

from tests.reference import CASES
from workbench.runner import Runner


@pytest.fixture(scope="session")
def runner(checkpoints):
    """Returns a compiled model for a config and a mode; compiles each once."""
    made = {}

    def get(name, return_logits):
        key = (name, return_logits)
        if key not in made:
            flags = {"max_length": CASES[name].max_length}
            made[key] = Runner(checkpoints[name], return_logits, flags)
        return made[key]

    return get
