"""The rolling window of the latest samples, and which of them each replay is made of.

The window holds names and places of samples, no pixels. It is whole steps of all lanes, so it is a function
of the data and of how far the run has come, and it can be rebuilt by reading on from its start.

L lanes of this rank   V lanes of the run   C samples that a lane gives to one step
"""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stream.cursor import Cursor, WindowStart
from stream.images.crops import unit_interval

_PURPOSE = int.from_bytes(b"replay")
"""Second half of the Philox key: keeps these numbers apart from others that are drawn with the run's seed."""


def choose(*, seed: int, step: int, update: int, lanes: int, chunk: int, held: int) -> NDArray[np.int64]:
    """Which samples of each lane's window one replay is made of: C of them, each at most once.

    The first C places of a shuffle (Fisher and Yates), with Philox 4x64 of key (seed, "replay") and counter
    (block, update, step, 0). All lanes' numbers are drawn, whoever asks, so the choice of a lane does not
    depend on the number of ranks.

    Args:
        seed: of the run; 0 .. 2^63 - 1.
        step: steps that the run had done before this one.
        update: number of the update within the step; the first replay is 1.
        lanes: V.
        chunk: C.
        held: samples that the window of each lane holds; >= C.

    Returns:
        [V, C] int64 in 0 .. held - 1, 0 the oldest.
    """
    key, counter = np.array([[seed, _PURPOSE, 0, 0], [0, update, step, 0]], dtype=np.uint64)
    words = np.random.Philox(key=key[:2], counter=counter).random_raw(lanes * chunk)
    floats_VC = unit_interval(words).reshape(lanes, chunk)
    order_Vh = np.tile(np.arange(held), (lanes, 1))
    rows_V = np.arange(lanes)
    for place in range(chunk):
        other_V = place + (floats_VC[:, place] * (held - place)).astype(np.int64)
        here_V = order_Vh[:, place].copy()
        order_Vh[:, place] = order_Vh[rows_V, other_V]
        order_Vh[rows_V, other_V] = here_V
    return order_Vh[:, :chunk]


@dataclass(frozen=True, slots=True)
class _Step:
    """The samples of one step."""

    start: WindowStart
    samples_LC3: NDArray[np.int64]
    """Number in the lane, unit, index."""


class ReplayWindow:
    """The samples of the latest steps of one rank.

    Args:
        lanes: of this rank, ascending.
        num_steps: that it holds; 0 holds none.
    """

    def __init__(self, lanes: tuple[int, ...], num_steps: int) -> None:
        self._lanes_L = np.array(lanes, dtype=np.int64)
        self._num_steps = num_steps
        self._steps: deque[_Step] = deque(maxlen=num_steps)

    def add(self, before: Cursor, seq_B: Tensor, refs_B2: Tensor) -> None:
        """Take in the step that begins at a cursor; the oldest one goes when the window is full.

        Args:
            before: the cursor before the step.
            seq_B: [B] int64, number of each sample in its lane; lanes ascending.
            refs_B2: [B, 2] int64, unit and index of each record.
        """
        start = WindowStart(pass_number=before.pass_number, steps=before.steps, positions=before.positions)
        samples_B3 = np.concatenate([seq_B.numpy()[:, None], refs_B2.numpy()], axis=1)
        self._steps.append(_Step(start, samples_B3.reshape(len(self._lanes_L), -1, 3)))

    def draw(self, cursor: Cursor, update: int) -> NDArray[np.int64]:
        """What one replay is made of, once the step that begins at `cursor` has been added.

        Returns:
            [L x C, 4] int64: lane, number in it, unit, index; lanes ascending.
        """
        held_LW3 = np.concatenate([step.samples_LC3 for step in self._steps], axis=1)
        picks_VC = choose(
            seed=cursor.seed,
            step=cursor.steps,
            update=update,
            lanes=cursor.lanes,
            chunk=cursor.chunk,
            held=held_LW3.shape[1],
        )
        picked_LC3 = np.take_along_axis(held_LW3, picks_VC[self._lanes_L][:, :, None], axis=1)
        lanes_LC1 = np.broadcast_to(self._lanes_L[:, None, None], (*picked_LC3.shape[:2], 1))
        return np.concatenate([lanes_LC1, picked_LC3], axis=2).reshape(-1, 4)

    def clear(self) -> None:
        """Forget all samples."""
        self._steps.clear()

    def marked(self, after: Cursor) -> Cursor:
        """The cursor with the start of what the next step's window will still hold of the past."""
        kept = self._num_steps - 1
        if kept < 1 or not self._steps:
            return replace(after, replay=None)
        start = self._steps[max(0, len(self._steps) - kept)].start
        ends = () if after.replay is None else after.replay.pass_ends
        passes = after.pass_number - start.pass_number
        return replace(after, replay=replace(start, pass_ends=ends[len(ends) - passes :]))


def with_pass_ended(cursor: Cursor) -> Cursor:
    """A cursor that has just gone to the next pass, with the end of the last one noted for its window."""
    if cursor.replay is None:
        return cursor
    ends = (*cursor.replay.pass_ends, cursor.steps)
    return replace(cursor, replay=replace(cursor.replay, pass_ends=ends))
