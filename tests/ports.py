"""Ports for servers that have to be told theirs before they run."""

import random
import socket
from contextlib import suppress
from pathlib import Path

_LOWEST = 10_000
_RANDOM = random.Random()
_given: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 that no program listens on, and that the system gives to none meanwhile.

    The system gives ports from a range of its own to whoever asks for any, and to all that connect; this one
    lies below that range. No port is returned twice.
    """
    above = 32_768
    with suppress(OSError, ValueError):
        above = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if above <= _LOWEST:
        above = 65_536
    while True:
        port = _RANDOM.randrange(_LOWEST, above)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
