"""What baselines scored, kept between evaluations: they depend on the data and not on what a run learned.

A file for each, `baselines/KEY.json` in the user's cache folder. The key is the digest of all that the score
depends on, so an entry is never outdated; removing the folder loses nothing but time.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stream.storage import LocalStore

VERSION = 1
"""To be raised when any baseline, or the protocol, gives other numbers from the same data."""

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/swavstream`, or `~/.cache/swavstream` where the variable names no absolute path.

    A user without a home, as in containers with any user id, has it among the temporary files.

    Source: XDG Base Directory Specification 0.8.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    if Path(home).is_absolute():
        return Path(home) / "swavstream"
    try:
        return Path.home() / ".cache" / "swavstream"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"swavstream-{os.getuid()}" / "cache"


class BaselineCache:
    """Scores of baselines by what they depend on.

    Never fails: what cannot be read is computed again, what cannot be written is said in a warning. Several
    processes may use it at once.
    """

    def __init__(self) -> None:
        self._store = LocalStore(cache_folder())

    def get(self, **basis: object) -> Mapping[str, Any] | None:
        """The scores that were put under the same basis; None when there are none.

        Args:
            basis: all that the scores depend on; plain JSON values.
        """
        try:
            body = json.loads(self._store.read(_name(basis)))
        except (OSError, ValueError):
            return None
        scores = body.get("scores") if isinstance(body, dict) else None
        return scores if isinstance(scores, dict) else None

    def put(self, scores: Mapping[str, Any], **basis: object) -> None:
        """Keep scores under their basis."""
        body = {"version": VERSION, "basis": basis, "scores": scores}
        try:
            self._store.replace(_name(basis), json.dumps(body).encode())
        except OSError as error:
            logger.warning("the scores of a baseline could not be kept in %s: %s", self._store.url, error)


def _name(basis: Mapping[str, object]) -> str:
    text = json.dumps({"version": VERSION, **basis}, sort_keys=True)
    return f"baselines/{hashlib.sha256(text.encode()).hexdigest()}.json"
