"""Work in a forked process, for tests whose work cannot be undone in their own; nothing is imported again."""

import json
import os
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any


def forked(work: Callable[[], dict[str, Any]], result: Path) -> dict[str, Any]:
    """Do the work in a child; what it returned.

    Args:
        work: returns JSON values.
        result: a file that the child writes them to.
    """
    child = os.fork()
    if child == 0:
        # A fork server that the tests of this process have started is no child of the new one.
        forkserver.ensure_running.__self__.__init__()  # type: ignore[attr-defined]
        try:
            found = work()
        except BaseException:  # noqa: BLE001  carried to the test
            found = {"error": traceback.format_exc()}
        result.write_text(json.dumps(found))
        os._exit(0)
    os.waitpid(child, 0)
    answer = json.loads(result.read_text())
    assert isinstance(answer, dict)
    assert "error" not in answer, answer["error"]
    return answer
