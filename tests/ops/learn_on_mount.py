"""Learning in a run directory on a small mount of its own, which takes nothing for a while."""

import ctypes
import io
import json
import logging
import subprocess
from pathlib import Path
from typing import Any

from ops.train.signals import StopRequest
from tests.forked import forked
from tests.ops.small_runs import bits, config_of, run

ROOM = "24m"
NEW_MOUNTS = 0x20000
"""CLONE_NEWNS of Linux."""


class Trouble(StopRequest):
    """From its second step on nothing can be written, until a checkpoint could not be."""

    def __init__(self, place: Path, kind: str, log: io.StringIO) -> None:
        super().__init__()
        self._mount, self._kind, self._log = place, kind, log
        self._saves = str(place / "run" / "checkpoints")
        self._steps = 0
        self._began = self._ended = False

    def requested(self) -> bool:
        self._steps += 1
        if self._steps > 2 and not self._began:
            self._began = True
            self._begin()
        elif self._began and not self._ended and "could not be written" in self._log.getvalue():
            self._ended = True
            self._end()
        return super().requested()

    def _begin(self) -> None:
        if self._kind == "readonly":
            mount("--bind", self._saves, self._saves)
            mount("-o", "remount,bind,ro", self._saves)
            return
        with (self._mount / "filler").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass

    def _end(self) -> None:
        if self._kind == "readonly":
            subprocess.run(["umount", "--lazy", self._saves], check=True)
        else:
            (self._mount / "filler").unlink()


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def learn_on_mount(stream: str, folder: Path, kind: str) -> dict[str, Any]:
    """Learn in a forked process that has a name space of mounts of its own.

    Args:
        stream: to learn from.
        folder: an empty one.
        kind: `full`, or `readonly`: then the checkpoints are mounted so, since the kernel refuses to make a
            mount read-only in which files are being written.

    Returns:
        How the run ended, what it warned of, and the digests of all that it ended with.
    """
    return forked(lambda: _on_mount(stream, folder / "mount", kind), folder / "result.json")


def _on_mount(stream: str, place: Path, kind: str) -> dict[str, Any]:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "no name space of mounts")
    mount("--make-rprivate", "/")
    place.mkdir()
    mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place))
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    config = config_of("checkpoint.every_samples=32", "checkpoint.keep=2")
    summary = run(stream, place / "run", config, stop=Trouble(place, kind, log))
    hashed, values, cursor = bits(place / "run")
    return {
        "status": summary.status,
        "warnings": log.getvalue(),
        "hashed": hashed,
        "values": json.dumps(values),
        "cursor": cursor.to_json(),
    }
