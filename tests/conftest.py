import os

# Before MAX is imported: no waiting for a telemetry host.
os.environ.setdefault("MODULAR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("MAX_SERVE_DISABLE_TELEMETRY", "1")

import pytest

from workbench.checkpoints import CONFIGS, write_checkpoint
from workbench.demo import prepare_demo


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
