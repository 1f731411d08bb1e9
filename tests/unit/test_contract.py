"""What max_mistral relies on in MAX 26.7 and others, each by name.

The seams are in ``tests/contract``. Read the failures top-down when an update of MAX
breaks something: each seam that has moved fails here under its own name, with our
files that use it and what to do. The table in CONTRIBUTING.md is made of them.
Nothing is compiled.
"""

import inspect

import pytest

from tests import contract
from tests.seams import CONTRIBUTING, SEAMS, contributing, find, foreign_privates

# So that a failure says what was compared.
pytest.register_assert_rewrite(*contract.MODULES)
contract.load()


@pytest.mark.parametrize("name", SEAMS)
def test_seam(name):
    found = SEAMS[name]
    assert found.files, f"no file of ours speaks of {found.names}: drop the seam"
    try:
        found.check()
    except (Exception, pytest.fail.Exception) as error:
        pytest.fail(
            f"moved: {found.what}. {type(error).__name__}: {error}\n"
            f"Our files: {', '.join(found.files)}. To do: {found.mend}."
        )


def test_every_private_name_of_others_has_a_seam():
    known = {name for each in SEAMS.values() for name in each.names}
    missing = {k: v for k, v in foreign_privates().items() if k not in known}
    assert not missing, f"no seam names {missing}: add one, or use a public name"


def test_the_table_in_contributing_is_the_one_of_these_seams():
    text = CONTRIBUTING.read_text()
    assert text == contributing(text), "run: python -m tests.seams"


def test_what_max_leaves_open_is_what_security_md_says():
    fields = find("max.serve.config:Settings").model_fields
    defaults = {
        "host": "0.0.0.0",
        "port": 8000,
        "metrics_port": 8001,
        "max_request_bytes": 100 * 2**20,
        "max_queue_size": None,
        "max_pending_requests": None,
        "use_client_cache_salt": False,
        "disable_telemetry": False,
    }
    found = {name: fields[name].default for name in defaults}
    assert found == defaults, "mend the table in SECURITY.md"
    server = inspect.getsource(find("max.serve.api_server"))
    for absent in ("CORSMiddleware", "TrustedHostMiddleware", "uthorization"):
        assert absent not in server, f"MAX has {absent} now: mend SECURITY.md"
    text = (CONTRIBUTING.parent / "SECURITY.md").read_text()
    for name in ("max_request_bytes", "max_queue_size", "max_pending_requests"):
        assert fields[name].alias in text
    for route in ("/reset_prefix_cache", "/v1/load_lora_adapter", "/invocations"):
        assert route in text
    assert find("max.pipelines.lib:KVCacheConfig")().enable_prefix_caching
