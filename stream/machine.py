"""What this process may use of the machine: processor cores and memory.

A scheduler or a container gives a process a part of a machine: by a set of cores (affinity), or by control
groups that bound processor time and memory. Groups are nested, and a process has the least of what its group
and all groups above it allow. Both versions of the interface are read, also where a machine mixes them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_V1 = 2**60
"""Version 1 writes "no limit" as the largest whole number of pages."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Folder of one control group, and the version of its interface."""

    folder: Path
    version: int


def cores(root: Path = Path("/")) -> int:
    """Processor cores that this process may keep busy; >= 1.

    A share of processor time counts rounded down: threads beyond it would only wait for each other.

    Args:
        root: where proc and sys/fs/cgroup lie.
    """
    counts = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    counts += [int(share) for group in _groups(root, "cpu") if (share := _cpu_share(group)) is not None]
    return max(1, min(counts))


def memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process and its children may take together, used or not.

    Args:
        root: where proc and sys/fs/cgroup lie.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [limit for group in _groups(root, "memory") if (limit := _memory_limit(group)) is not None]
    return min([machine, *limits])


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can still be given out to this process; None where that is not known.

    Args:
        root: where proc and sys/fs/cgroup lie.
    """
    available = _field(root / "proc/meminfo", "MemAvailable:")
    known = [] if available is None else [available * 1024]
    known += [left for group in _groups(root, "memory") if (left := _memory_left(group)) is not None]
    return max(0, min(known)) if known else None


def _groups(root: Path, controller: str) -> Iterator[_Group]:
    """The control groups that bound this process by a controller: its own, and those above that are seen."""
    own: dict[str, str] = {}  # by controller, "" = version 2
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, about = line.partition(" - ")
        kind, _, options = [*about.split(" ", 2), "", ""][:3]
        if kind == "cgroup2" and "" in own:
            path, version = own[""], 2
        elif kind == "cgroup" and controller in own and controller in options.split(","):
            path, version = own[controller], 1
        else:
            continue
        shown, place = fields.split(" ")[3:5]
        top = root / place.lstrip("/")
        folder = top / _below(path, shown)
        for group in (folder, *folder.parents):
            yield _Group(group, version)
            if group == top:
                break


def _below(path: str, shown: str) -> str:
    """A group's path below the group that is mounted; "" when it is outside of what this container sees."""
    if ".." in path.split("/"):
        return ""
    shown = shown.rstrip("/")
    return path.removeprefix(shown).strip("/") if f"{path}/".startswith(f"{shown}/") else ""


def _cpu_share(group: _Group) -> float | None:
    """Processors' worth of time; None without a bound."""
    if group.version == 2:
        words = _text(group.folder / "cpu.max").split()
    else:
        words = [_text(group.folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) == 0:
        return None  # "max", or -1
    return int(words[0]) / int(words[1])


def _memory_limit(group: _Group) -> int | None:
    """Bytes; None without a bound. Above memory.high a group is slowed down until it stands still."""
    names = ("memory.max", "memory.high") if group.version == 2 else ("memory.limit_in_bytes",)
    limits = [int(text) for name in names if (text := _text(group.folder / name)).isdecimal()]
    return min((limit for limit in limits if limit < _UNLIMITED_V1), default=None)


def _memory_left(group: _Group) -> int | None:
    """Bytes below the bound; None without one. Cached files count as used, but give way."""
    limit = _memory_limit(group)
    modern = group.version == 2
    used = _text(group.folder / ("memory.current" if modern else "memory.usage_in_bytes"))
    if limit is None or not used.isdecimal():
        return None
    names = [f"{'' if modern else 'total_'}{name}_file" for name in ("inactive", "active")]
    return limit - int(used) + sum(_field(group.folder / "memory.stat", name) or 0 for name in names)


def _text(path: Path) -> str:
    """What a small file says; "" when it is not there, as at the root of all groups."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _field(path: Path, name: str) -> int | None:
    for line in _lines(path):
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return None
