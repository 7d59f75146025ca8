"""What a process may use, in trees of control groups as kernels, schedulers and containers show them."""

import os
from pathlib import Path

import pytest

from stream import machine

GIB = 2**30
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


def tree(root: Path, *, own: str, mounts: str, files: dict[str, str]) -> Path:
    """A machine's proc and sys/fs/cgroup; files by their place below the latter."""
    texts = {
        "proc/self/cgroup": own,
        "proc/self/mountinfo": mounts,
        "proc/meminfo": "MemAvailable: 8388608 kB",
    }
    texts |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores and 1 TiB, all of whose cores this process may use."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**28}
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("os.sysconf", lambda name: sizes[name])


def test_without_groups_the_machine_counts(tmp_path: Path) -> None:
    assert machine.cores(tmp_path) == 64
    assert machine.memory(tmp_path) == 2**40
    assert machine.free_memory(tmp_path) is None


def test_a_set_of_cores_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5})
    assert machine.cores(tmp_path) == 2


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 64),
        ("400000 100000", 4),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("9900000 100000", 64),
    ],
)
def test_a_share_of_time_counts_in_whole_cores(tmp_path: Path, quota: str, cores: int) -> None:
    root = tree(tmp_path, own="0::/job", mounts=V2, files={"job/cpu.max": quota})
    assert machine.cores(root) == cores


def test_of_nested_groups_the_least_counts_whichever_it_is(tmp_path: Path) -> None:
    files = {
        "job/cpu.max": "300000 100000",
        "job/step/cpu.max": "800000 100000",
        "job/step/task/cpu.max": "max 100000",
        "job/memory.max": str(16 * GIB),
        "job/step/memory.max": str(4 * GIB),
        "job/step/task/memory.max": "max",
        "other/cpu.max": "100000 100000",
        "other/memory.max": str(GIB),
    }
    root = tree(tmp_path, own="0::/job/step/task", mounts=V2, files=files)
    assert machine.cores(root) == 3
    assert machine.memory(root) == 4 * GIB


def test_the_bound_at_which_a_group_is_slowed_down_counts(tmp_path: Path) -> None:
    files = {"job/memory.max": str(4 * GIB), "job/memory.high": str(3 * GIB)}
    assert machine.memory(tree(tmp_path, own="0::/job", mounts=V2, files=files)) == 3 * GIB


def test_free_is_what_is_least_free_with_cached_files_counted_as_free(tmp_path: Path) -> None:
    files = {
        "job/memory.max": str(6 * GIB),
        "job/memory.current": str(5 * GIB),
        "job/memory.stat": f"anon 1\ninactive_file {GIB // 2}\nactive_file {GIB}\nfile 7",
        "job/step/memory.max": str(9 * GIB),
        "job/step/memory.current": str(GIB),
        "job/step/memory.stat": "inactive_file 0\nactive_file 0",
    }
    root = tree(tmp_path, own="0::/job/step", mounts=V2, files=files)
    assert machine.free_memory(root) == 2.5 * GIB


def test_a_group_above_its_bound_has_nothing_free(tmp_path: Path) -> None:
    files = {"job/memory.high": str(GIB), "job/memory.current": str(2 * GIB)}
    assert machine.free_memory(tree(tmp_path, own="0::/job", mounts=V2, files=files)) == 0


V1 = """24 18 0:20 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
32 24 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 24 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 24 0:33 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"""
OWN_V1 = "5:memory:/slurm/uid_0/job_7\n4:cpu,cpuacct:/slurm/uid_0\n1:name=systemd:/\n0::/"


def test_groups_of_version_1_count_each_controller_with_its_own_tree(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/slurm/cpu.cfs_quota_us": "250000",
        "cpu,cpuacct/slurm/cpu.cfs_period_us": "50000",
        "cpu,cpuacct/slurm/uid_0/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/slurm/uid_0/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/slurm/uid_0/memory.limit_in_bytes": str(8 * GIB),
        "memory/slurm/uid_0/memory.usage_in_bytes": str(7 * GIB),
        "memory/slurm/uid_0/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file 0",
        "memory/slurm/uid_0/job_7/memory.limit_in_bytes": "9223372036854771712",
    }
    root = tree(tmp_path, own=OWN_V1, mounts=V1, files=files)
    assert machine.cores(root) == 5
    assert machine.memory(root) == 8 * GIB
    assert machine.free_memory(root) == 2 * GIB


def test_a_container_that_is_shown_its_own_group_only_finds_it(tmp_path: Path) -> None:
    mounts = "35 24 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"
    own = "5:memory:/docker/abc"
    root = tree(tmp_path, own=own, mounts=mounts, files={"memory/memory.limit_in_bytes": str(GIB)})
    assert machine.memory(root) == GIB


@pytest.mark.parametrize("own", ["0::/", "0::/../other", "0::/gone"])
def test_a_container_with_groups_of_its_own_has_the_bound_at_their_top(tmp_path: Path, own: str) -> None:
    files = {"cpu.max": "200000 100000", "memory.max": str(GIB)}
    root = tree(tmp_path, own=own, mounts=V2, files=files)
    assert machine.cores(root) == 2
    assert machine.memory(root) == GIB


def test_what_cannot_be_read_bounds_nothing(tmp_path: Path) -> None:
    files = {"job/cpu.max": "nonsense", "job/memory.max": "", "job/memory.current": "x"}
    root = tree(tmp_path, own="0::/job\n", mounts=V2, files=files)
    assert machine.cores(root) == 64
    assert machine.memory(root) == 2**40
    assert machine.free_memory(root) == 8 * GIB


def test_of_this_machine_it_has_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = machine.free_memory()
    assert free is not None
    assert 0 < free < whole
    assert 0 < machine.memory() <= whole
