"""The low watermark (floor) of a stream: commits below it are pruned, their accounts stay in the manifest.

    pruned.json    version, first, records, swept

`first` is the first commit that is kept, `records` what all before it had, and the tars of the commits below
`swept` have been removed. The floor is raised before a tar goes, so a prune that was killed leaves tars that
no reader uses and the next prune removes, and never a tar missing above the floor.
"""

from dataclasses import dataclass

from stream.errors import StreamDamaged
from stream.json_values import whole
from stream.shards.commits import decode_checked, encode_checked
from stream.storage import Store

FLOOR_VERSION = 1
NAME = "pruned.json"
_LARGEST = 2**62


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """How far a stream is pruned."""

    first: int = 0
    """First commit that is kept."""
    records: int = 0
    """Records of all commits before that."""
    swept: int = 0
    """The tars of commits below this one have been removed; at most `first`."""

    def __post_init__(self) -> None:
        for name in ("first", "records", "swept"):
            if not 0 <= getattr(self, name) <= _LARGEST:
                raise ValueError(f"{name} of the floor must be in 0..2^62, got {getattr(self, name)}")
        if self.swept > self.first:
            raise ValueError(f"tars below {self.swept} are gone, but the floor is at {self.first}")


def read_floor(store: Store) -> Floor:
    """The floor of a stream; zeros when nothing was ever pruned.

    Raises:
        StreamDamaged: what is there is no floor.
        OSError: the store does not answer.
    """
    try:
        data = store.read(NAME)
    except FileNotFoundError:
        return Floor()
    return decode_floor(data, url=store.url)


def write_floor(store: Store, floor: Floor) -> None:
    """Put the floor, whole and durable. Raises OSError."""
    store.replace(NAME, encode_floor(floor))


def encode_floor(floor: Floor) -> bytes:
    """The JSON of a floor."""
    body = {
        "version": FLOOR_VERSION,
        "first": floor.first,
        "records": floor.records,
        "swept": floor.swept,
    }
    return encode_checked(body)


def decode_floor(data: bytes, *, url: str) -> Floor:
    """Read what `encode_floor` wrote. Raises StreamDamaged."""
    try:
        body = decode_checked(data)
        if body["version"] != FLOOR_VERSION:
            raise StreamDamaged(
                f"{url}/{NAME} has version {body['version']!r}; this program reads {FLOOR_VERSION}"
            )
        first, records, swept = (whole(body[name]) for name in ("first", "records", "swept"))
        return Floor(first=first, records=records, swept=swept)
    except (ValueError, TypeError, KeyError) as error:
        raise StreamDamaged(
            f"{url}/{NAME} cannot be read ({error}): put a copy back, or remove it and prune again, with "
            "limits that reach as far"
        ) from error
