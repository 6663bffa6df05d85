"""Which processes and which device a run has; alone, or started several times by PyTorch's own launcher."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from bltcli.errors import UsageError


@dataclass(frozen=True)
class World:
    """This process among `size` processes, each with a model of its own on `device`."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over all processes; one message for all of them."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size > 1 and gradients:
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all processes, each of which gives as many values."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return self.sum([float(flag)])[0] > 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = World(torch.device("cpu"))


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """The world of a run on `device`: cpu, cuda, or auto (cuda where there is one). `torchrun` says by the environment
    which of how many processes this is. Raises UsageError for a device that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no GPU here; use --device cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    place = torch.device(device, local) if device == "cuda" else torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(place, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
