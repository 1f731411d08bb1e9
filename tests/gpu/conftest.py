import pytest
from max.driver import accelerator_count


@pytest.fixture(scope="session", autouse=True)
def _gpu():
    """Before anything else is prepared."""
    if accelerator_count() == 0:
        pytest.skip("needs a GPU, and MAX finds none here")
