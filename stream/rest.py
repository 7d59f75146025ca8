"""What a reader does for a tail: which samples a lane still has, by name."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stream.errors import BadRecord, StreamError
from stream.lanes import Position
from stream.layout import Account
from stream.plan import ReadPlan
from stream.reader import Remains, Sample, Spent, outlook_from
from stream.slabs import Frame
from stream.source import Source


@dataclass(frozen=True, slots=True)
class Rest:
    """The next samples of a lane, or all that it has up to its end (implements reader.Task)."""

    position: Position
    pass_number: int
    most: int
    """Samples that are wanted at most; >= 1."""

    def result(self, source: Source, plan: ReadPlan, frames: Sequence[Frame]) -> Remains | Spent:
        """Read on, and see by decoding which records are good; where no sample is missing, to the end.

        Raises:
            StreamError: this process does not see the end of the stream; what the source raises.
        """
        position = after = self.position
        if not outlook_from(source, position, self.pass_number).ended:
            source.refresh()
            if not source.outlook(position, self.pass_number).ended:
                raise StreamError(f"{self}: the stream was seen sealed, and is not now; run the same again")
        account, samples = Account(plan=plan), list[Sample]()
        clock = time.perf_counter()
        for entry, after in source.read(position, self.pass_number):  # noqa: B007  the last one counts
            account.read_s += time.perf_counter() - clock
            account.met(entry)
            try:
                account.image(entry)
            except BadRecord as error:
                account.skip(entry, position.lane, error.reason)
                if account.spent():
                    return Spent(account.stats(), tuple(account.bad), tuple(account.deadly))
            else:
                samples.append((position.lane, position.seq + account.used, entry.unit, entry.index))
                account.used += 1
            if account.used == self.most:
                break
            clock = time.perf_counter()
        return Remains(
            replace(after, seq=position.seq + account.used),
            account.stats(),
            tuple(account.bad),
            tuple(account.deadly),
            account.newest,
            tuple(samples),
        )

    def __str__(self) -> str:
        position = self.position
        return f"lane {position.lane} from unit {position.unit}, place {position.base}+{position.idx}, on"
