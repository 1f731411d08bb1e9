"""A MAX of another line is refused at import, with the command that helps."""

import subprocess
import sys

import pytest

from max_mistral import _compat
from max_mistral._compat import check_max_compiles, check_max_version


@pytest.mark.parametrize("version", ["26.7.0", "26.7.3", "26.7.0.dev1"])
def test_the_supported_line_passes(version):
    check_max_version(version)


@pytest.mark.parametrize("version", ["26.6.0", "26.8.0", "27.7.0", "2.0"])
def test_another_line_is_named_with_the_cure(version):
    with pytest.raises(ImportError) as error:
        check_max_version(version)
    assert f"found MAX {version}" in str(error.value)
    assert "pip install 'max[serve]>=26.7,<26.8'" in str(error.value)


def test_no_max_at_all():
    with pytest.raises(ImportError, match="MAX is not installed"):
        check_max_version(None)


def test_the_check_runs_before_any_of_max_is_imported():
    code = (
        "import importlib.metadata as m, sys\n"
        "real = m.version\n"
        "m.version = lambda n: '26.8.0' if n == 'max' else real(n)\n"
        "try:\n    import max_mistral\n"
        "except ImportError as e:\n    print(e); print('max' in sys.modules)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "found MAX 26.8.0" in out
    assert out.splitlines()[-1] == "False"


def test_max_that_cannot_compile_is_told_from_a_wrong_one(monkeypatch):
    check_max_compiles()

    def fails(name):
        raise ImportError("Import of Mojo module failed due to compilation error.")

    monkeypatch.setattr(_compat, "import_module", fails)
    with pytest.raises(ImportError, match="apt-get install gcc libc6-dev"):
        check_max_compiles()
