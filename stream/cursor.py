"""The cursor: the positions of all lanes of a run, saved beside the weights that they produced."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stream.errors import StreamDamaged
from stream.json_values import string, whole
from stream.lanes import Bounds, LaneStats, Position, add_counts, owners_of
from stream.order import SHARD
from stream.source import Source

CURSOR_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowStart:
    """Where the samples begin that later replays can still be drawn from; reading on from here finds them."""

    pass_number: int
    steps: int
    """Steps that the run had done there."""
    positions: tuple[Position, ...]
    """Exactly V, in lane order."""
    pass_ends: tuple[int, ...] = ()
    """Steps that had been done when each pass from `pass_number` on ended: where a pass ends is agreed by all
    lanes, so a rank cannot see it in its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """The positions of all V lanes, with what they are positions of; saved beside the weights it produced."""

    source: Mapping[str, str]
    """Identity of the stream, as `Source.identity()` gives it."""
    seed: int
    lanes: int
    """V."""
    chunk: int
    """C, samples a lane gives to one step; V x C is the global batch."""
    window: int
    """W, commits that are shuffled together, 0 = all (Kafka: records of a block)."""
    order: str = SHARD
    """Shards: how records of a window are ordered; cursors that do not say it are of order shard."""
    pass_number: int = 0
    """Which pass over a sealed stream; 0 is the first."""
    steps: int = 0
    samples: int = 0
    """Distinct arrivals used so far, over all passes."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Records that could not be used so far, by reason."""
    left_over: int = 0
    """Records of ended passes that no step used because it could not be filled; unusable ones that were read
    for that step are in `skipped`."""
    positions: tuple[Position, ...]
    """Exactly V, in lane order."""
    recent: tuple[tuple[int, int], ...] = ()
    """Records read and unusable ones among them, of the newest steps: the budget of bad records."""
    replay: WindowStart | None = None
    """None when nothing is replayed, or nothing of the past can be."""
    begin: int = 0
    """Unit at which each pass begins: on shards what was pruned before the run began is not part of it."""
    accept_until: int = 0
    """Until the run has read so many records, unusable ones spend no budget."""
    deadly: tuple[tuple[int, int], ...] = ()
    """Unit and index of each record that was left out because it kills its decoder, ascending."""
    bounds: Bounds = ()
    """Where the lanes of a topic begin and end for this run; empty for shards."""

    def __post_init__(self) -> None:
        for positions in (self.positions, self.replay.positions if self.replay else self.positions):
            if [position.lane for position in positions] != list(range(self.lanes)):
                raise ValueError(
                    f"a cursor of {self.lanes} lanes needs exactly one position a lane, in order; got "
                    f"{len(positions)} positions"
                )
        if self.bounds and len(self.bounds) != self.lanes:
            raise ValueError(f"a cursor of {self.lanes} lanes has {len(self.bounds)} bounds")

    def first_positions(self) -> tuple[Position, ...]:
        """Where a pass begins; `seq` goes on."""
        starts = [start for start, _ in self.bounds] or [0] * self.lanes
        return tuple(
            Position(lane=p.lane, unit=self.begin, base=starts[p.lane], seq=p.seq) for p in self.positions
        )

    @property
    def read(self) -> int:
        """Records read so far, used or not, over all passes."""
        return self.samples + sum(self.skipped.values())

    @property
    def accepted(self) -> int:
        """Records from here on that are read without a budget of unusable ones."""
        return max(0, self.accept_until - self.read)

    def advanced(self, after: Iterable[Position], stats: LaneStats) -> "Cursor":
        """The cursor after one step that used the chunks ending at `after`."""
        moved = {position.lane: position for position in after}
        return replace(
            self,
            steps=self.steps + 1,
            samples=self.samples + stats.used,
            skipped=add_counts(self.skipped, stats.skipped),
            positions=tuple(moved.get(position.lane, position) for position in self.positions),
        )

    def next_pass(self) -> "Cursor":
        """The cursor at the start of the next pass; the window of replays goes on over it."""
        window = self.replay
        if window is not None:
            window = replace(window, pass_ends=(*window.pass_ends, self.steps))
        positions = self.first_positions()
        return replace(self, pass_number=self.pass_number + 1, positions=positions, replay=window)

    def to_json(self) -> str:
        """One JSON object; `Cursor.from_json` reads it back equal."""
        body: dict[str, Any] = {"version": CURSOR_VERSION}
        for name in (
            "seed", "lanes", "chunk", "window", "pass_number", "steps", "samples", "left_over",
        ):  # fmt: skip
            body[name] = getattr(self, name)
        body["source"] = dict(self.source)
        body["skipped"] = dict(self.skipped)
        body["recent"] = [list(counts) for counts in self.recent]
        body["positions"] = _rows(self.positions)
        for name in ("begin", "accept_until"):
            if getattr(self, name):
                body[name] = getattr(self, name)
        if self.order != SHARD:
            body["order"] = self.order
        if self.deadly:
            body["deadly"] = [list(place) for place in self.deadly]
        if self.bounds:
            body["bounds"] = [list(bound) for bound in self.bounds]
        if self.replay is not None:
            body["replay"] = {
                "pass_number": self.replay.pass_number,
                "steps": self.replay.steps,
                "positions": _rows(self.replay.positions),
                "pass_ends": list(self.replay.pass_ends),
            }
        return json.dumps(body, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Cursor":
        """Read a cursor back.

        Raises:
            StreamDamaged: not a cursor, of another version, or with missing or doubled lanes.
        """
        try:
            body = json.loads(text)
            version = body.pop("version")
            if version != CURSOR_VERSION:
                raise StreamDamaged(f"cursor version is {version!r}; this program reads {CURSOR_VERSION}")
            positions = _positions(body.pop("positions"))
            recent = tuple((whole(read), whole(bad)) for read, bad in body.pop("recent", ()))
            deadly = tuple((whole(unit), whole(index)) for unit, index in body.pop("deadly", ()))
            bounds = tuple((whole(start), whole(end, least=-1)) for start, end in body.pop("bounds", ()))
            replay = body.pop("replay", None)
            if replay is not None:
                replay = WindowStart(
                    pass_number=whole(replay["pass_number"]),
                    steps=whole(replay["steps"]),
                    positions=_positions(replay["positions"]),
                    pass_ends=tuple(whole(steps) for steps in replay["pass_ends"]),
                )
            for name, value in body.items():
                if name == "source":
                    body[name] = {string(key): string(text) for key, text in value.items()}
                elif name == "order":
                    body[name] = string(value)
                elif name == "skipped":
                    body[name] = {string(reason): whole(count) for reason, count in value.items()}
                else:
                    whole(value)
            return cls(
                positions=positions, recent=recent, replay=replay, deadly=deadly, bounds=bounds, **body
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StreamDamaged(f"cursor cannot be read: {error!r}") from error


def joined(cursors: Sequence[Cursor], groups: int = 1) -> Cursor:
    """The cursor of the whole run from those of all its ranks, in order of ranks, all after the same step.

    Each has moved the positions of its own lanes, and met the deadly records in them; everything else is the
    same in all of them.

    Args:
        cursors: one a rank.
        groups: of batch norm, by which lanes were dealt to the ranks.

    Raises:
        ValueError: they are not of the same step.
    """
    first = cursors[0]
    if any((one.pass_number, one.steps) != (first.pass_number, first.steps) for one in cursors):
        raise ValueError(f"ranks stand at different steps: {[one.steps for one in cursors]}")
    owners = owners_of(first.lanes, len(cursors), groups)
    positions = tuple(cursors[owner].positions[lane] for lane, owner in enumerate(owners))
    replay = first.replay
    if replay is not None:
        starts = [one.replay for one in cursors if one.replay is not None]
        begun = tuple(starts[owner].positions[lane] for lane, owner in enumerate(owners))
        replay = replace(replay, positions=begun)
    deadly = sorted({place for one in cursors for place in one.deadly})
    return replace(first, positions=positions, replay=replay, deadly=tuple(deadly))


def _rows(positions: Iterable[Position]) -> list[list[int]]:
    return [[p.lane, p.unit, p.base, p.idx, p.seq, p.end, *([p.proof] if p.proof else [])] for p in positions]


def _positions(rows: Iterable[list[int]]) -> tuple[Position, ...]:
    return tuple(
        Position(
            lane=whole(lane),
            unit=whole(unit, least=-1),
            base=whole(base, least=-1),
            idx=whole(idx, least=-1),
            seq=whole(seq),
            end=whole(end, least=-1),
            proof=whole(proof),
        )
        for lane, unit, base, idx, seq, end, proof in ([*row, 0] if len(row) == 6 else row for row in rows)
    )


def start_cursor(
    source: Source, *, seed: int, chunk: int, window: int, begin: int = 0, order: str = SHARD
) -> Cursor:
    """The cursor of a run that begins: the first record of every lane, from the unit `begin` on."""
    empty = Cursor(
        source=source.identity(),
        seed=seed,
        lanes=source.lanes,
        chunk=chunk,
        window=window,
        order=order,
        begin=begin,
        positions=tuple(Position(lane=lane) for lane in range(source.lanes)),
        bounds=source.bounds(),
    )
    return replace(empty, positions=empty.first_positions())
