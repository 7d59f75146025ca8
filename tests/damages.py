"""What can befall a file: a byte changed, a piece cut off or out, something added, also nested too deep."""

from hypothesis import assume
from hypothesis import strategies as st


@st.composite
def other_than(draw: st.DrawFn, written: bytes) -> bytes:
    """Bytes that are nearly, and not, those that were written."""
    at = draw(st.integers(0, len(written) - 1))
    how = draw(st.sampled_from(["bit", "byte", "cut", "hole", "more", "deep", "swap"]))
    if how == "bit":
        changed = _with(written, at, written[at] ^ (1 << draw(st.integers(0, 7))))
    elif how == "byte":
        changed = _with(written, at, draw(st.integers(0, 255).filter(lambda byte: byte != written[at])))
    elif how == "cut":
        changed = written[:at]
    elif how == "hole":
        changed = written[:at] + written[at + draw(st.integers(1, 9)) :]
    elif how == "more":
        changed = written[:at] + draw(st.binary(min_size=1, max_size=9)) + written[at:]
    elif how == "deep":
        changed = written[:at] + draw(st.sampled_from([b"[", b'{"a":'])) * 20_000 + written[at:]
    else:
        to = draw(st.integers(0, len(written) - 1))
        changed = _with(_with(written, at, written[to]), to, written[at])
    assume(changed != written)
    return changed


def _with(data: bytes, at: int, byte: int) -> bytes:
    return data[:at] + bytes([byte]) + data[at + 1 :]
