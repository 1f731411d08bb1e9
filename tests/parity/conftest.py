import pytest

from tests.harness import Runner
from tests.reference import CASES


@pytest.fixture(scope="session")
def runner(checkpoints):
    """Returns a compiled model for a config and a mode; compiles each once."""
    made = {}

    def get(name, return_logits):
        key = (name, return_logits)
        if key not in made:
            case = CASES[name]
            longest = max(case.prompt_lengths) + case.steps
            made[key] = Runner(
                checkpoints[name],
                return_logits,
                {"max_length": 256 if longest <= 256 else 640},
            )
        return made[key]

    return get
