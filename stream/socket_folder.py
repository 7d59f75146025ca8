"""The short folder of this user, where sockets lie.

The address of a socket holds about a hundred bytes, and batch systems give each job a temporary folder with a
longer path. So sockets never lie under TMPDIR. The folder depends on the user alone, not on the environment:
two commands of one user on one machine find the same.
"""

import os
import stat
from pathlib import Path

SOCKET_PATH_BYTES = 100
"""Longest socket path used, bytes; the kernel's own limit is 104 on macOS and 108 on Linux."""


class NoSocketFolder(OSError):
    """There is no folder on this machine in which sockets of this user alone can lie."""


def parents() -> tuple[Path, ...]:
    """Where the folder may lie, the first choice first."""
    return Path("/tmp"), Path(f"/run/user/{os.getuid()}"), Path("/dev/shm")  # noqa: S108  checked to be private


def socket_folder() -> Path:
    """The folder, of mode 0700; made when it is missing.

    Raises:
        NoSocketFolder: none can be made, or what lies there is not of this user alone. The message says why.
    """
    reasons = []
    for parent in parents():
        folder = parent / f"swavstream-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            state = folder.lstat()
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
            continue
        if stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077:
            return folder
        reasons.append(f"{folder} is not a private folder of this user")
    raise NoSocketFolder(f"no folder for sockets ({'; '.join(reasons)}): remove what is in the way")
