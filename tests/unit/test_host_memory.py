"""The memory that is free, where control groups have less than the machine."""

from types import SimpleNamespace

import pytest

from max_mistral import host_memory
from max_mistral.host_memory import free_memory

MACHINE = 10_000


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    memory = SimpleNamespace(available=MACHINE)
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: memory)


def free(folder, lines, files):
    """What is found free, of groups that are files of numbers by their paths."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    own = folder / "self"
    own.write_text("".join(f"{line}\n" for line in lines))
    return free_memory(folder / "cgroup", own)


V2 = ["0::/"]
V1 = ["5:cpu,cpuacct:/other", "4:memory:/docker/1234", "0::/"]


@pytest.mark.parametrize(
    ("lines", "files", "left"),
    [
        (V2, {}, MACHINE),
        ([], {"memory.max": 1000}, MACHINE),
        (V2, {"memory.max": "max"}, MACHINE),
        (V2, {"memory.max": "max", "memory.current": 9}, MACHINE),
        (V2, {"memory.max": 1000}, 1000),
        (V2, {"memory.max": 1000, "memory.current": 300}, 700),
        # Both kinds of page cache are given up for programs.
        (
            V2,
            {
                "memory.max": 1000,
                "memory.current": 800,
                "memory.stat": "anon 100\nfile 700\ninactive_file 500\nactive_file 200",
            },
            900,
        ),
        # A limit that was lowered, and one that is no promise of the machine.
        (V2, {"memory.max": 1000, "memory.current": 1300}, 0),
        (V2, {"memory.max": 2**60, "memory.current": 1300}, MACHINE),
        (V2, {"memory.max": "?"}, MACHINE),
        (V2, {"memory.max": 1000, "memory.current": "?"}, 1000),
        (["nonsense", "", "0", *V2], {"memory.max": 1000}, 1000),
        # Where systemd mounts both versions.
        (["0::/a"], {"unified/a/memory.max": 1000}, 1000),
    ],
)
def test_a_group(tmp_path, lines, files, left):
    assert free(tmp_path, lines, files) == left


@pytest.mark.parametrize(
    ("sizes", "left"), [((900, 800, 700), 600), ((700, 800, 900), 600)]
)
def test_the_least_of_groups_within_each_other(tmp_path, sizes, left):
    files = {}
    for name, size in zip(("", "user.slice/", "user.slice/a/"), sizes, strict=True):
        files |= {f"{name}memory.max": size, f"{name}memory.current": 100}
    assert free(tmp_path, ["0::/user.slice/a"], files) == left
    # Not those that it is not in.
    assert free(tmp_path, ["0::/other"], files) == sizes[0] - 100


@pytest.mark.parametrize("where", ["memory", "memory/docker", "memory/docker/1234"])
def test_version_1(tmp_path, where):
    """With the group's own path, or in a container that sees no more than its end."""
    files = {
        f"{where}/memory.limit_in_bytes": 1000,
        f"{where}/memory.usage_in_bytes": 800,
        # The lines without total_ are of the group without those in it.
        f"{where}/memory.stat": "inactive_file 7\ntotal_inactive_file 300\n"
        "total_active_file 100",
        # Of another controller, and of another group.
        "cpu/memory.limit_in_bytes": 1,
        "memory/other/memory.limit_in_bytes": 1,
    }
    assert free(tmp_path, V1, files) == 600
    unlimited = {f"{where}/memory.limit_in_bytes": 9223372036854771712}
    assert free(tmp_path, V1, unlimited) == MACHINE


def test_a_path_out_of_the_mount_is_not_followed(tmp_path):
    (tmp_path / "memory.max").write_text("1\n")
    files = {"memory.max": 1000}
    assert free(tmp_path, ["0::/../.."], files) == 1000


def test_without_files_it_is_the_machines(tmp_path):
    assert free_memory(tmp_path, tmp_path / "none") == MACHINE


def test_this_machine(monkeypatch):
    monkeypatch.undo()
    assert 10**6 < free_memory() < 2**60
