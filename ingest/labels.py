"""Which label an image has, by the rules that hold for records everywhere, and by its folder where asked."""

from dataclasses import dataclass

from stream.record import LARGEST_LABEL, decode_sample


@dataclass(frozen=True, slots=True)
class Labels:
    """The label of one image."""

    label: int | None = None
    label_name: str | None = None
    bad: bool = False
    """A label was stated, or asked for, and could not be had; the image is none the worse."""


NO_LABELS = Labels()


def parent_of(path: str) -> str:
    """Name of the folder that a file lies in; may be empty."""
    return path.rpartition("/")[0].rpartition("/")[2]


def labels_of(cls: bytes | None, body: bytes | None, parent: str, label_from: str) -> Labels:
    """Label of an image.

    Args:
        cls: content of its `.cls`, or None.
        body: content of its `.json`, or None.
        parent: name of the folder that it lies in; may be empty.
        label_from: empty, or `parent`: the folder's name is the label's name (and, if it is a whole number,
            the label), and `.cls` and `.json` count only where there is no folder.
    """
    if label_from == "parent" and parent not in {"", ".", ".."}:
        number = int(parent) if parent.isascii() and parent.isdecimal() and len(parent) <= 10 else -1
        name = parent.encode("utf-8", "backslashreplace").decode("utf-8")
        return Labels(number if 0 <= number <= LARGEST_LABEL else None, name)
    asked = label_from == "parent"
    if cls is None and body is None:
        return Labels(bad=asked)
    record = decode_sample(b"-", "", body, cls)  # the image itself has no say in its label
    none = record.label is None and record.label_name is None
    return Labels(record.label, record.label_name, record.bad_label or (asked and none))
