"""Names of files: which are hidden, and how one is shown; what a file is says stream/file_types.py."""


def shown(name: str) -> str:
    """A name that can be printed and stored: control characters and undecodable bytes are escaped."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
