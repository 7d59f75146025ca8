"""The live page as one document: its parts are files of the package, put together once."""

import base64
import functools
import hashlib
import importlib.resources


@functools.cache
def page() -> bytes:
    """The whole page; nothing in it is fetched from elsewhere but the run's own figures and pictures."""
    return _part("page.html").replace("/*STYLE*/", _style()).replace("/*SCRIPT*/", _script()).encode()


@functools.cache
def page_policy() -> str:
    """Content-Security-Policy: exactly this page's style and script run, nothing is fetched elsewhere."""
    return (
        f"default-src 'none'; script-src {_hash(_script())}; style-src {_hash(_style())}; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _style() -> str:
    return _part("page.css")


def _script() -> str:
    return "".join(_part(name) for name in ("charts.js", "heatmap.js", "clusters.js", "page.js"))


def _part(name: str) -> str:
    return (importlib.resources.files("ops") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
