"""Where processes are forked from: multiprocessing's fork server, whose socket does not outlast its program.

The server listens at a socket in the short folder of this user, whatever TMPDIR says. A program that is
killed cannot remove it, so it lies in a folder that says whether its program lives: a lock is held in it. The
next program that forks removes those whose lock no process holds.
"""

import contextlib
import functools
import multiprocessing
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Sequence
from multiprocessing import forkserver, util
from multiprocessing.context import ForkServerContext
from pathlib import Path

from stream.socket_folder import socket_folder
from stream.storage import try_lock

PREFIX = "fork-"
_LOCK = "lives"


def fork_server(preload: Sequence[str]) -> ForkServerContext:
    """Where to start processes; the server itself is started when it does not run.

    Args:
        preload: modules that the server imports once; what the first caller says counts.
    """
    _give_home()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    # A scheduler warns all processes of a job. The server and what it forks leave that to the program.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@functools.cache
def _give_home() -> None:
    """Have multiprocessing put its socket where the next program finds it; once in a process."""
    with contextlib.suppress(OSError):  # then it lies where multiprocessing puts it
        sweep()
        home = _made()
        # After multiprocessing has removed its own folder, at -100.
        util.Finalize(None, shutil.rmtree, args=(home,), kwargs={"ignore_errors": True}, exitpriority=-110)
        before, tempfile.tempdir = tempfile.tempdir, str(home)
        try:
            util.get_temp_dir()
        finally:
            tempfile.tempdir = before


def _made() -> Path:
    """A folder of this process, locked until it ends."""
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=socket_folder()))
    new = home / "new"
    handle = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if try_lock(handle):  # on a file system without locks it is never removed
        new.rename(home / _LOCK)  # locked before it has the name that others look for
    return home


def sweep() -> int:
    """Remove the folders of programs that are gone, of this user; how many."""
    removed = 0
    for home in socket_folder().glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another one sweeps too
            about = home.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and _nobody_lives(home / _LOCK):
                shutil.rmtree(home)
                removed += 1
    return removed


def _nobody_lives(lock: Path) -> bool:
    with lock.open("rb") as file:
        return try_lock(file) is True
