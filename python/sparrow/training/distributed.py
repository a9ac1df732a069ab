"""One process, or several under torchrun: the same code."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

WAIT = datetime.timedelta(hours=12)  # processes do not finish their answers together


@dataclass(frozen=True)
class Ranks:
    """This process among all. rank 0 writes files and shows progress."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def total(self, value: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def parallel(self, module: nn.Module, sharding: str) -> nn.Module:
        """The module with its gradients averaged over all processes: "ddp" or "fsdp" (FSDP2)."""
        if sharding == "fsdp":
            from torch.distributed.fsdp import fully_shard

            if self.world == 1:
                raise ValueError("optimisation.sharding=fsdp needs several processes: torchrun --nproc-per-node N ...")
            fully_shard(module)  # in place
            return module
        return DistributedDataParallel(module) if self.world > 1 else module


def local_device(device: torch.device) -> torch.device:
    """This process' own GPU where torchrun started several."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device == torch.device("cuda") else device


@contextlib.contextmanager
def ranks(device: torch.device) -> Iterator[Ranks]:
    """Joins the processes that torchrun started (environment WORLD_SIZE): nccl on CUDA, gloo on the CPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
