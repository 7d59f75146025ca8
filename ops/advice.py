"""What is allowed of a run's settings, but probably not meant. Nothing heavy is imported."""

from ops.config import RunConfig

SHARP, ROUNDS_WHEN_SHARP = 0.03, 10
"""Below this epsilon Sinkhorn converges slowly; the published run nearest to it (0.03) made 10 rounds."""


def advice(config: RunConfig) -> list[str]:
    """One sentence for each setting that is allowed but probably not meant."""
    found = []
    largest = max(config.swav.prototypes)
    pool = config.batch + config.swav.queue_samples // config.batch * config.batch
    if pool < largest:
        enough = enough_queue(largest, config.batch)
        found.append(
            f"batch + queue is {pool}, fewer than the {largest} prototypes: a balanced code cannot reach "
            f"all of them in one step; lower swav.prototypes (in short runs), or raise swav.queue_samples to "
            f"{enough} or more"
        )
    epsilon, rounds = config.swav.epsilon, config.swav.sinkhorn_iterations
    if epsilon < SHARP and rounds < ROUNDS_WHEN_SHARP:
        found.append(
            f"swav.epsilon = {epsilon} with {rounds} iterations stops far from balanced codes: raise "
            f"swav.sinkhorn_iterations to {ROUNDS_WHEN_SHARP}"
        )
    annealed = config.optim.anneal_samples > 0
    if config.optim.schedule == "constant" and config.optim.final_learning_rate and not annealed:
        found.append("optim.final_learning_rate is ignored: the schedule is constant")
    if 0 < config.reseed.after_samples < 10 * largest:
        found.append(
            f"reseed.after_samples = {config.reseed.after_samples} is less than ten samples for each of the "
            f"{largest} prototypes: even traffic leaves some unused for so long; set it to {10 * largest}"
        )
    if config.checkpoint.keep == 1:
        found.append("checkpoint.keep is 1: when the only checkpoint is damaged the run starts anew")
    return found


def enough_queue(prototypes: int, batch: int) -> int:
    """Samples of a queue that brings batch + queue to K: whole batches, as it holds no others."""
    return max(0, -(-(prototypes - batch) // batch) * batch)
