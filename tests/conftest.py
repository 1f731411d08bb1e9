import os
from pathlib import Path

# Before MAX is imported: no waiting for a telemetry host.
os.environ.setdefault("MODULAR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("MAX_SERVE_DISABLE_TELEMETRY", "1")

import pytest
from hypothesis import settings

from max_mistral import switches
from workbench.checkpoints import CONFIGS, write_checkpoint
from workbench.demo import prepare_demo

# The same cases at every run, however slow the machine is.
settings.register_profile(
    "tests", derandomize="MAX_MISTRAL_FUZZ" not in os.environ, deadline=None
)
settings.load_profile("tests")


def pytest_configure(config):
    """Forgets a shell's choices, which would change what is tested, or hide it.

    ``scripts/gpu_steps.py`` makes some for ``tests/gpu``, and no others reach it.
    """
    if not any("tests/gpu" in argument for argument in config.args):
        for variable in switches.ALL:
            os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """The folders of the tiny seeded checkpoints, by the names of CONFIGS."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        name: write_checkpoint(root / name, config) for name, config in CONFIGS.items()
    }


@pytest.fixture(scope="session")
def demo_model():
    """SmolLM2-135M-Instruct as ``make demo`` prepares it."""
    return prepare_demo()


@pytest.fixture(scope="session")
def checkpoint(checkpoints):
    """The grouped-query, untied one."""
    return checkpoints["gqa"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes():
    """Before the workers start: MAX's engine, once imported, exports a
    PYTHONEXECUTABLE that sends a child to the wrong installation."""
    os.unsetenv("PYTHONEXECUTABLE")


# Two workers that wanted one graph at the same time would both compile it. So first
# come the files whose graphs others use too, then long ones, then those others.
FIRST = [
    "unit/test_kernels.py",
    "e2e/test_cli.py",
    "parity/test_logits.py",
    "parity/test_perplexity.py",
    "e2e/test_soak.py",
    "parity/test_lookup.py",
]


def pytest_collection_modifyitems(items):
    """Runs ``FIRST`` first, the other files in their order."""
    root = Path(__file__).parent
    places = {root / name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(FIRST)))
