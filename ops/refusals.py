"""Settings that no run can have together on so many ranks. Nothing heavy is imported."""

from collections.abc import Iterator

from ops.config import RunConfig


def refusals(config: RunConfig, ranks: int) -> Iterator[str]:
    """A sentence for each; `learn` does not start with any of them."""
    if ranks > config.lanes:
        yield (
            f"{ranks} ranks are more than {config.lanes} lanes: every rank needs one; raise lanes, or use "
            f"{config.lanes} ranks"
        )
    if 0 < config.swav.queue_samples < config.batch:
        yield (
            f"swav.queue_samples = {config.swav.queue_samples} does not hold one batch of {config.batch}: "
            "set it to 0 or to several batches"
        )
    groups = max(1, config.model.bn_groups)
    if config.accumulate > 1 and groups % (ranks * config.accumulate):
        yield (
            f"accumulate = {config.accumulate} on {ranks} rank{'s' * (ranks > 1)} needs model.bn_groups to "
            f"be a multiple of {ranks * config.accumulate}, got {groups}: batch norm must see whole groups"
        )
    elif config.accumulate > 1 and ranks > 1 and config.lanes % groups:
        yield (
            f"accumulate = {config.accumulate} on {ranks} ranks needs lanes to be a multiple of "
            f"model.bn_groups = {groups}, got {config.lanes}: batch norm must see whole groups"
        )
