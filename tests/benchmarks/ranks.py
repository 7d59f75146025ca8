"""What ranks cost and whether they agree: codes and losses of 2 and 4 ranks against one, and time a step.

    python -m tests.benchmarks.ranks [STEPS]

Real processes joined by gloo on this machine. Where it has fewer cores than ranks, time says nothing about
scaling: what is seen there is the cost of agreeing.
"""

import sys
import tempfile
from pathlib import Path

import torch

from ops.rundir.checkpoint import load_newest
from tests.ops.forked_ranks import start, traced
from tests.ops.small_runs import config_of, write_stream


def main() -> None:
    """Print the table."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stream = write_stream(Path(folder) / "stream", 32 * steps)
        print(f"{steps} steps of 32, queue 64, 4 groups of batch norm, against one rank")
        print("precision  ranks  batches  loss at step 1  loss at the end  weights  seconds a step")
        for precision in ("float64", "float32"):
            runs = []
            for world in (1, 2, 4):
                run_dir = Path(folder) / f"{precision}-{world}"
                config = config_of(f"precision={precision}", "model.bn_groups=4")
                ranks = start(world, stream, run_dir, config)
                summary = ranks.wait()[0]["summary"]
                saved = load_newest(run_dir)
                assert saved is not None
                runs.append((traced(ranks.folder), saved.state["tensors"]))
                (trace, tensors), (first, whole) = runs[-1], runs[0]
                same = all(trace[update][1] == first[update][1] for update in first)
                losses = [abs(trace[update][0] - first[update][0]) for update in sorted(first)]
                apart = max(
                    float((tensors[name].double() - tensor.double()).abs().max())
                    for name, tensor in whole.items()
                    if name.startswith("model") and tensor.is_floating_point()
                )
                print(
                    f"{precision:9}  {world:5}  {'same' if same else 'OTHER':7}  {losses[0]:14.1e}  "
                    f"{losses[-1]:15.1e}  {apart:7.1e}  {summary['seconds'] / len(first):14.3f}"
                )


if __name__ == "__main__":
    main()
