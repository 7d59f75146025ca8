"""Which device a rank computes on, whether it is there, and the precision that it is fit for."""

import logging
import os
import platform

import torch

from ops.config.schema import RunConfig
from ops.distributed.environment import Launched
from ops.errors import ConfigError
from stream.machine import cores

logger = logging.getLogger(__name__)


def keep_to_share() -> None:
    """Compute with no more threads than this process has cores; what OMP_NUM_THREADS says is kept.

    Of itself torch sees which cores are its own, but not a share of their time.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())


def device_of(config: RunConfig, local_rank: int = 0) -> torch.device:
    """The device of a rank; `auto` and `cuda` are the GPU of its number on this host, if there is one."""
    wanted = config.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted != "cuda":
        return torch.device(wanted)
    # A launcher may show each rank its own GPU only.
    return torch.device("cuda", local_rank if torch.cuda.device_count() > 1 else 0)


def precision_of(config: RunConfig, device: torch.device) -> str:
    """The precision that a rank computes in: that of the settings, but float32 where bfloat16 has no kernels.

    Convolutions in bfloat16 need AVX-512 on an x86 CPU. Without it one update of `cifar10-onepass` took eight
    times as long as in float32. Weights are float32 in both, so the run may go on elsewhere in bfloat16.
    """
    if config.precision != "bfloat16" or device.type != "cpu":
        return config.precision
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() not in {"x86_64", "AMD64"} or capability.startswith(("AVX512", "AMX")):
        return config.precision
    logger.info("bfloat16 is slow on this CPU (%s, no AVX-512): computing in float32", capability)
    return "float32"


def check_device(config: RunConfig, place: Launched | None = None) -> None:
    """Refuse a device that this machine, or this rank, does not have.

    Raises:
        ConfigError: says which there are.
    """
    if place is not None and config.device.startswith("cuda:"):
        raise ConfigError(
            f"device {config.device} with {place.world_size} ranks: all would take the same GPU; give "
            "--set device=cuda"
        )
    device = device_of(config, place.local_rank if place else 0)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        whose = f"rank {place.rank} wants {device}, but this host" if place else f"{device}: this machine"
        raise ConfigError(
            f"device {config.device} is not there ({whose} has {torch.cuda.device_count()} CUDA devices); "
            "start as many ranks as there are GPUs, or give --set device=cpu"
        )
