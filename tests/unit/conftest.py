from functools import cache

import pytest

from tests.routes import Routes
from tests.tools import VERSIONS
from tests.vocabularies import write_vocabulary
from workbench.tokenizers import write_model


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """One of each made-up vocabulary."""
    root = tmp_path_factory.mktemp("vocabularies")
    return {v: Routes(write_vocabulary(root / v, v), max_length=8192) for v in VERSIONS}


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def server(servers, version):
    return servers[version]


@pytest.fixture
def v13(servers):
    return servers["v13"]


@pytest.fixture(scope="session")
def real_model(tmp_path_factory):
    """Writes a checkpoint with a real tokenizer, once; returns Mistral's own file.

    For reading only: the tests share it.
    """

    @cache
    def write(kind):
        return write_model(kind, tmp_path_factory.mktemp("real") / "m")

    return write
