"""max-mistral doctor: what it tells, and of whom it tells nothing."""

import re

import numpy as np
import pytest
from max.engine import InferenceSession

from max_mistral import command
from max_mistral.command import doctor, kernel_check
from max_mistral.errors import UserError


def test_doctor_tells_the_machine_and_not_the_user(tmp_path, monkeypatch, capsys):
    home = tmp_path / "home" / "alice"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", "nonsense")
    (home / "cache" / "max_mistral" / "models").mkdir(parents=True, mode=0o700)
    (home / "cache" / "max_mistral" / "models" / "x").write_bytes(bytes(2_500_000))
    command.main(["doctor"])
    out = capsys.readouterr().out
    assert "alice" not in out
    assert "~/cache/max_mistral, 2.5 MB" in out
    assert "MAX_MISTRAL_KERNELS is 'nonsense'" in out
    for expected in ("max 26.7", "max_mistral 26.7", "CPU features: ", "memory: "):
        assert f"  {expected}" in out
    for name in ("versions", "machine", "GPUs", "settings", "caches"):
        assert f"{name}:\n" in out
    assert "kernel check" not in out


def test_doctor_shows_a_gpu_that_cannot_be_opened(monkeypatch):
    def broken(index):
        raise RuntimeError("no such device")

    monkeypatch.setattr(doctor, "accelerator_count", lambda: 1)
    monkeypatch.setattr(doctor, "accelerator_api", lambda: "cuda")
    monkeypatch.setattr(doctor, "gpu_architecture", lambda: "sm_90a")
    monkeypatch.setattr(doctor, "Accelerator", broken)
    assert list(doctor._gpus()) == [
        "1 by cuda, sm_90a",
        "gpu:0 cannot be opened: no such device",
    ]


def test_a_failed_check_ends_with_1(monkeypatch, capsys):
    def wrong():
        raise UserError("The CPU kernels are off by 1.")

    monkeypatch.setattr(doctor, "check_kernels", wrong)
    monkeypatch.setattr(doctor, "_SECTIONS", {})
    with pytest.raises(SystemExit) as ended:
        command.main(["doctor", "--check"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "Error: The CPU kernels are off by 1.\n"


@pytest.fixture(scope="module")
def session():
    """MAX's, but that it compiles the check's graph once."""
    models = []

    class Once:
        def __init__(self, devices):
            self.session = InferenceSession(devices=devices)

        def load(self, graph):
            if not models:
                models.append(self.session.load(graph))
            return models[0]

    return Once


@pytest.fixture
def check(session, monkeypatch, capsys):
    """Runs ``doctor --check`` and nothing else of it; returns what it printed."""
    monkeypatch.setattr(doctor, "_SECTIONS", {})
    monkeypatch.setattr(kernel_check, "InferenceSession", session)

    def run():
        command.main(["doctor", "--check"])
        return capsys.readouterr().out

    return run


def test_the_kernels_are_checked(check):
    pattern = r"kernel check:\n  compiled in .*; a product is off NumPy's by (\S+)\n"
    found = re.fullmatch(pattern, check())
    # Float32 sums, in another order than NumPy's.
    assert 0 < float(found[1]) < 1e-4


@pytest.mark.parametrize(
    ("wrong", "off"),
    [(1.001, r"0\.0\d+"), (np.nan, "nan")],
    ids=["a thousandth", "nan"],
)
def test_kernels_that_compute_something_else(check, monkeypatch, capsys, wrong, off):
    pack = kernel_check.pack

    def packed(data, *how):
        weight = data.view(np.float32) * np.float32(wrong)
        return pack(weight.view(np.uint8), *how)

    monkeypatch.setattr(kernel_check, "pack", packed)
    with pytest.raises(SystemExit) as ended:
        check()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert re.match(rf"Error: The CPU kernels are off by {off} on this CPU;", said)


def test_a_user_without_a_home(monkeypatch, capsys):
    """As in a container that runs under a number that no one has."""

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("MODULAR_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    command.main(["doctor"])
    assert "MAX: ~/.cache/modular, not there" in capsys.readouterr().out


def test_a_cache_that_is_a_link(tmp_path):
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert doctor._cache("MAX", tmp_path / "link").endswith(", closed to others")
    (tmp_path / "disk").chmod(0o777)
    assert doctor._cache("MAX", tmp_path / "link").endswith("others may write there")
