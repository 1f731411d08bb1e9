import os
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


@pytest.fixture
def pipe(tmp_path):
    """Makes a pipe of a name that whoever opens it can read, and would find wrong.

    Someone writes to it: it does not hang.
    """
    ends = []

    def make(name):
        path = tmp_path / name
        os.mkfifo(path)
        ends.append(os.open(path, os.O_RDWR))
        os.write(ends[-1], bytes(64))
        return path

    yield make
    for end in ends:
        os.close(end)
