import pytest

from tests.harness import Runner


@pytest.fixture(scope="session")
def runner(checkpoints):
    """Returns a compiled model for a config and a mode; compiles each once."""
    made = {}

    def get(name, return_logits):
        key = (name, return_logits)
        if key not in made:
            made[key] = Runner(checkpoints[name], return_logits)
        return made[key]

    return get
