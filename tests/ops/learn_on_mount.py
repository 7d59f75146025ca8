"""Program: learns in a run directory on a small mount of its own, which takes nothing for a while.

To be started in a mount name space of its own. Arguments: stream, an empty folder, `full` or `readonly`
(which makes a read-only mount of the checkpoints: the kernel refuses that for files that are being written).
Prints one JSON object: how the run ended, what it warned of, the digests of all that it ended with.
"""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import torch

from ops.train.signals import StopRequest
from tests.ops.small_runs import bits, config_of, run

ROOM = "24m"


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


def main(stream: str, place: Path, kind: str) -> None:
    torch.set_num_threads(1)
    log = io.StringIO()
    logging.basicConfig(stream=log, level=logging.WARNING)
    mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place))
    config = config_of("checkpoint.every_samples=32", "checkpoint.keep=2")
    summary = run(stream, place / "run", config, stop=Trouble(place, kind, log))
    hashed, values, cursor = bits(place / "run")
    result = {
        "status": summary.status,
        "warnings": log.getvalue(),
        "hashed": hashed,
        "values": json.dumps(values),
        "cursor": cursor.to_json(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
