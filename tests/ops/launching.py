"""The program as a process of its own, and the summary that it prints last."""

import json
import os
import subprocess
import sys
from typing import Any

PROGRAM = [sys.executable, "-P", "-m", "ops.cli"]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def summary_of(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found
