"""Replay by prototypes: a memory of images that stays balanced over prototypes in any order of arrival.

Each lane keeps M / V of the images that it has given, encoded as they came: the stream may be pruned behind
a run. A lane that is full gives up as many as it takes in: one after the other the oldest of those members
whose prototype has the most members in all lanes. A window of the latest images forgets what arrived before
it; here images of long ago stay as long as some prototypes are theirs.

A member's prototype is the arg-max of its raw scores, of the first head: at the update of its arrival, and
again at each of its replays. These are gathered from all ranks anyway. So every rank holds the table of all
lanes, and all choose alike, for any number of ranks. The images of a lane are held by the rank that has it.

V lanes of the run   L lanes of this rank   C samples that a lane gives to one step   H members of each lane
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream.cursor import Cursor, WindowStart
from stream.errors import StreamDamaged
from stream.loader.replay import choose
from stream.loader.shared_memory import KEY_BYTES, SharedBytes
from stream.loader.step import Step
from stream.loader.tasks import Chunk, LayImages, Task

VERSION = 1
"""Of `Members.tensors`; another one is refused."""


def staying(prototype_VH: NDArray[np.int32], leaving: int) -> NDArray[np.bool_]:
    """Which members stay when every lane gives up so many of them.

    Lanes take turns. The one whose turn it is gives up the oldest of those of its members whose prototype has
    the most members at that moment, counted over all lanes.

    Args:
        prototype_VH: prototype of each member; the oldest of a lane first.
        leaving: 0 .. H.

    Returns:
        [V, H] bool, `leaving` false ones in each row.
    """
    held_VH, gone = prototype_VH.copy(), int(prototype_VH.max(initial=0)) + 1
    counts_K = np.bincount(held_VH.reshape(-1), minlength=gone + 1)
    counts_K[gone] = -1  # below that of any member
    for _ in range(leaving):
        for held_H in held_VH:
            oldest = counts_K[held_H].argmax()  # of equals the first
            counts_K[held_H[oldest]] -= 1
            held_H[oldest] = gone
    stay_VH: NDArray[np.bool_] = held_VH != gone
    return stay_VH


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Members:
    """What a rank holds of the past between two steps; never changed, the next step makes another one."""

    lanes: tuple[int, ...]
    """Of this rank, ascending."""
    prototype_VH: NDArray[np.int32]
    """Of all lanes; the oldest member of a lane first."""
    samples_LH3: NDArray[np.int64]
    """Number in the lane, unit, index."""
    keys_LH: NDArray[np.uint8]
    """[L, H, KEY_BYTES], as in `BatchFrame`."""
    images_LH: tuple[tuple[bytes, ...], ...]
    """Encoded."""

    @classmethod
    def none(cls, lanes: Sequence[int], of: int) -> "Members":
        """Those at the beginning of a run of so many lanes."""
        return cls(
            lanes=tuple(lanes),
            prototype_VH=np.zeros((of, 0), np.int32),
            samples_LH3=np.zeros((len(lanes), 0, 3), np.int64),
            keys_LH=np.zeros((len(lanes), 0, KEY_BYTES), np.uint8),
            images_LH=((),) * len(lanes),
        )

    def emptied(self) -> "Members":
        """None, of the same lanes."""
        return Members.none(self.lanes, len(self.prototype_VH))

    @property
    def num_bytes(self) -> int:
        """Of the encoded images of this rank's lanes."""
        return sum(len(image) for images_H in self.images_LH for image in images_H)

    def prototypes_in_use(self) -> int:
        """Prototypes that have members, of all lanes."""
        return int(np.count_nonzero(np.bincount(self.prototype_VH.reshape(-1))))

    def tensors(self) -> dict[str, Tensor]:
        """Copies for a checkpoint, by lane; those of all ranks together are the members of the run."""
        found = {"version": torch.tensor(VERSION), "prototypes": torch.from_numpy(self.prototype_VH.copy())}
        for place, lane in enumerate(self.lanes):
            images_H = self.images_LH[place]
            joined = bytearray(b"".join(images_H))
            images = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.empty(0).byte()
            found[f"images.{lane}"] = images
            found[f"sizes.{lane}"] = torch.tensor([len(image) for image in images_H], dtype=torch.int64)
            found[f"samples.{lane}"] = torch.from_numpy(self.samples_LH3[place].copy())
            found[f"keys.{lane}"] = torch.from_numpy(self.keys_LH[place].copy())
        return found

    @classmethod
    def of_tensors(cls, found: Mapping[str, Tensor], lanes: Sequence[int]) -> "Members":
        """Those of some lanes, out of what `tensors` gave on any number of ranks.

        Raises:
            StreamDamaged: there are none, another version, or a lane is missing.
        """
        if not found:
            raise StreamDamaged("there are no images for replay")
        version = int(found.get("version", torch.tensor(0)))
        if version != VERSION:
            raise StreamDamaged(
                f"the images for replay are of version {version}, this program reads {VERSION}"
            )
        try:
            return cls(
                lanes=tuple(lanes),
                prototype_VH=found["prototypes"].numpy(),
                samples_LH3=np.stack([found[f"samples.{lane}"].numpy() for lane in lanes]),
                keys_LH=np.stack([found[f"keys.{lane}"].numpy() for lane in lanes]),
                images_LH=tuple(
                    tuple(
                        part.numpy().tobytes()
                        for part in torch.split(found[f"images.{lane}"], found[f"sizes.{lane}"].tolist())
                    )
                    if len(found[f"sizes.{lane}"])
                    else ()
                    for lane in lanes
                ),
            )
        except KeyError as error:
            raise StreamDamaged(f"the images for replay lack {error}") from error


@dataclass(slots=True)
class _OpenStep:
    """The members and the samples of the step that is being done, arrivals last in each lane."""

    prototype_VH: NDArray[np.int32]
    samples_LH3: NDArray[np.int64]
    keys_LH: NDArray[np.uint8]
    images_LH: list[tuple[bytes, ...]]
    picks_VC: list[NDArray[np.int64]] = field(default_factory=list)
    """Of each replay, in order."""
    updates: int = 0
    """That are done."""

    def closed(self, lanes: tuple[int, ...], most: int) -> Members:
        """What is left of them, at most so many a lane."""
        stay_VH = staying(self.prototype_VH, max(0, self.prototype_VH.shape[1] - most))
        stay_LH, left = stay_VH[list(lanes)], min(most, self.prototype_VH.shape[1])
        return Members(
            lanes=lanes,
            prototype_VH=self.prototype_VH[stay_VH].reshape(-1, left),
            samples_LH3=self.samples_LH3[stay_LH].reshape(-1, left, 3),
            keys_LH=self.keys_LH[stay_LH].reshape(-1, left, KEY_BYTES),
            images_LH=tuple(
                tuple(compress(images_H, stay_H))
                for images_H, stay_H in zip(self.images_LH, stay_LH, strict=True)
            ),
        )


class PrototypeMemory:
    """Images of the past, balanced over prototypes (implements ReplayPolicy).

    Each replay is, for every lane, C samples drawn without replacement from its members and its samples of
    the arriving batch, each as likely as the others. Replays are laid out when a step arrives: so what its
    updates find out of prototypes counts from the next step on. Only then is a lane cut to its M / V members.

    Args:
        lanes_of_ranks: of each rank, ascending.
        rank: which of them this is.
        most: members of a lane; M / V.
        updates: of each step, its own among them.
        samples_at_once: that one task lays out.
        images: where readers find the images of replays.
        members: to go on from; None begins.
    """

    def __init__(
        self,
        lanes_of_ranks: Sequence[Sequence[int]],
        rank: int,
        *,
        most: int,
        updates: int,
        samples_at_once: int,
        images: SharedBytes,
        members: Members | None,
    ) -> None:
        # Lanes in the order in which what all ranks found is put together.
        self._gathered_V = np.concatenate([np.array(lanes) for lanes in lanes_of_ranks])
        self._lanes = tuple(lanes_of_ranks[rank])
        self._most, self._updates, self._samples_at_once = most, updates, samples_at_once
        self._images = images
        self.members = Members.none(self._lanes, len(self._gathered_V)) if members is None else members
        """As they were when the latest whole step was done."""
        self._step: _OpenStep | None = None

    def begin(self, cursor: Cursor) -> WindowStart | None:
        """See ReplayPolicy; nothing has to be read."""
        return None

    def add(self, before: Cursor, step: Step) -> None:
        """Take in a step; which prototypes its samples are of is not known yet."""
        held, frame = self.members, step.frame
        samples_B3 = np.concatenate([frame.seq_B.numpy()[:, None], frame.refs_B2.numpy()], axis=1)
        lanes, chunk = len(self._lanes), before.chunk
        self._images.clear()
        self._step = _OpenStep(
            prototype_VH=np.pad(held.prototype_VH, ((0, 0), (0, chunk))),
            samples_LH3=np.concatenate([held.samples_LH3, samples_B3.reshape(lanes, chunk, 3)], axis=1),
            keys_LH=np.concatenate(
                [held.keys_LH, frame.keys.numpy().reshape(lanes, chunk, KEY_BYTES)], axis=1
            ),
            images_LH=[
                (*images_H, *(part.images if isinstance(part, Chunk) else ()))
                for images_H, part in zip(held.images_LH, step.parts, strict=True)
            ],
        )

    def tasks(self, before: Cursor, update: int, frame: int) -> Sequence[Task]:
        """See ReplayPolicy; the images are put where readers find them."""
        step = self._step
        assert step is not None, "the step was added"
        picks_VC = choose(
            seed=before.seed,
            step=before.steps,
            update=update,
            lanes=before.lanes,
            chunk=before.chunk,
            held=step.prototype_VH.shape[1],
        )
        step.picks_VC.append(picks_VC)
        picked = [
            (place, lane, pick) for place, lane in enumerate(self._lanes) for pick in picks_VC[lane].tolist()
        ]
        draw, at_once = before.steps * self._updates + update, self._samples_at_once
        tasks = []
        for column in range(0, len(picked), at_once):
            some = picked[column : column + at_once]
            images = [step.images_LH[place][pick] for place, _, pick in some]
            tasks.append(
                LayImages(
                    samples=tuple(
                        (lane, *step.samples_LH3[place, pick].tolist()) for place, lane, pick in some
                    ),
                    keys=tuple(
                        step.keys_LH[place, pick].tobytes().rstrip(b"\0").decode("ascii")
                        for place, _, pick in some
                    ),
                    start=self._images.append(b"".join(images)),
                    sizes=tuple(map(len, images)),
                    draw=draw,
                    frame=frame,
                    column=column,
                )
            )
        return tasks

    def learned(self, assigned_N: Tensor) -> None:
        """See ReplayPolicy; after the last update of the step each lane gives up what it cannot hold."""
        step = self._step
        if step is None:
            return
        found_VC = np.empty((len(self._gathered_V), len(assigned_N) // len(self._gathered_V)), np.int32)
        found_VC[self._gathered_V] = assigned_N.numpy().reshape(found_VC.shape)
        if step.updates == 0:
            step.prototype_VH[:, -found_VC.shape[1] :] = found_VC
        else:
            np.put_along_axis(step.prototype_VH, step.picks_VC[step.updates - 1], found_VC, axis=1)
        step.updates += 1
        if step.updates == self._updates:
            self.members, self._step = step.closed(self._lanes, self._most), None

    def after(self, after: Cursor) -> Cursor:
        """See ReplayPolicy; what `begin` needs is in the members."""
        return after

    def not_added(self) -> None:
        """See ReplayPolicy; the members stay."""
        self._step = None
