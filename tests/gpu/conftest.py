import pytest
from max.driver import accelerator_count

from workbench.check_device import is_dry


@pytest.fixture(scope="session", autouse=True)
def _gpu():
    """Before anything else is prepared. In a dry run a CPU stands for it."""
    if accelerator_count() == 0 and not is_dry():
        pytest.skip("needs a GPU, and MAX finds none here")
