"""Passwords in addresses: whether there is one, and how an address is shown without it. Nothing heavy."""

from urllib.parse import urlsplit


def safe_url(url: str) -> str:
    """The URL without user, password and options, fit for a message."""
    if "://" not in url:  # none, but it may hold a password all the same
        return url.rpartition("@")[2].partition("?")[0]
    if is_torn(url):
        return "..."
    try:
        parts = urlsplit(url)
    except ValueError:  # as for a bracket that is never closed
        return "..."
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"


def is_torn(url: str) -> bool:
    """Whether a password was typed in as it is, and its / ? or # ends the address before the @ does.

    Then what looks like host, path or options is a part of the password.
    """
    place, rest = _split(url)
    return "@" in rest or "@" in place.rpartition("@")[0]


def check_no_password(url: str) -> None:
    """Refuse the address of a stream that holds a password: addresses are written to disk and into messages.

    An @ in a path is none, unless what stands before the path can be the beginning of a password.

    Raises:
        ValueError: it holds one; the message repeats no part of it.
    """
    place, rest = _split(url)
    login, at, _ = place.rpartition("@")
    port = place.rpartition(":")[2] if ":" in place and not place.endswith("]") else ""
    if ":" in login if at else ("@" in rest and port and not port.isdecimal()):
        raise ValueError(
            "the address of a stream must not hold a password, it is written to disk: give keys in the "
            "variables or files that the store's own tools read (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY), or as FSSPEC_<PROTOCOL>_<SETTING> (FSSPEC_SFTP_PASSWORD)"
        )


def _split(url: str) -> tuple[str, str]:
    """What stands between :// and the first / ? or #, and the rest."""
    rest = url.partition("://")[2]
    end = min((rest.index(sign) for sign in "/?#" if sign in rest), default=len(rest))
    return rest[:end], rest[end:]
