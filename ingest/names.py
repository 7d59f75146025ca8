"""Names of files: which are hidden, and how one is shown; what a file is says stream/file_types.py."""


def is_hidden(name: str) -> bool:
    """Whether a part of a relative name is hidden (starts with a dot) or what macOS leaves in archives."""
    parts = name.split("/")
    return any((part.startswith(".") and part not in {".", ".."}) or part == "__MACOSX" for part in parts)


def shown(name: str) -> str:
    """A name that can be printed and stored: control characters and undecodable bytes are escaped."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
