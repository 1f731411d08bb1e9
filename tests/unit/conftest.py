import pytest

from tests.checkpoints import BASE, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny seeded checkpoint: grouped-query, untied, float32."""
    return write_checkpoint(tmp_path_factory.mktemp("gqa"), BASE)
