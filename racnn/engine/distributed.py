"""Several processes that train one network: torchrun starts them, each takes a share of every batch.

    torchrun --nproc-per-node 4 -m racnn train --config CONFIG --out RUN

Convention
    ``data.batch_size`` is that of all processes together. Rank r of W takes the photos r, r + W, r + 2 W, ... of every batch,
    so that the batches, and with them the losses, are those of a single process. Whatever is decided, is decided from
    numbers that all ranks share, or by rank 0 for all. Only rank 0 writes.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from racnn.errors import ConfigError, UserError

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # of ranks that wait while rank 0 writes a cache, or reads photos


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one training.

    Attributes:
        rank: Rank of this process, from 0.
        size: How many there are.
        launch: A name that torchrun's processes keep when it starts them again, unless its store was lost; None without
            torchrun.
    """

    rank: int = 0
    size: int = 1
    launch: str | None = None

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def from_main_process(self, call: Callable[[], T]) -> T:
        """Return on all ranks what a call returns on rank 0.

        Raises:
            UserError: The call raised it; on rank 0 alone, the others leave with exit code 2 and say nothing.
        """
        if self.size == 1:
            return call()
        answer: list[Any] = [None, None]
        failure: Exception | None = None
        if self.is_main_process:
            try:
                answer = ["value", call()]
            except Exception as error:  # the others must not wait for a value that never comes
                failure, answer = error, ["error", 2 if isinstance(error, UserError) else 1]
        dist.broadcast_object_list(answer)
        if failure is not None:
            raise failure
        kind, value = answer
        if kind == "error":
            raise SystemExit(value)
        return value

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let rank 0 do first what follows, then the others, so that a mistake of the user is told once.

        What follows must not wait for other ranks.

        Raises:
            SystemExit: On the others, where rank 0 failed, see :meth:`from_main_process`.
        """
        if self.size > 1 and not self.is_main_process:
            self.from_main_process(lambda: None)
        try:
            yield
        except Exception as error:
            if self.size > 1 and self.is_main_process:
                dist.broadcast_object_list(["error", 2 if isinstance(error, UserError) else 1])
            raise
        if self.is_main_process:
            self.from_main_process(lambda: None)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, rows: list[T]) -> list[T]:
        """Return the rows of all ranks, on every rank, in the order in which they were dealt out."""
        if self.size == 1:
            return rows
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, rows)
        return [part[i] for i in range(len(every[0])) for part in every if i < len(part)]

    def restarted(self) -> bool:
        """Return whether torchrun has started any of these processes again."""
        mine = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        return any(self.gather([mine]))

    def same_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers of rank 0: the statistics of batch norm."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.size > 1:
            dist.barrier()


ALONE = ProcessGroup()


def join(device: torch.device) -> ProcessGroup:
    """Join the processes that torchrun started, or be alone.

    Args:
        device: Where this process trains, see :func:`own_device`.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
    # torchrun keeps its store when it starts processes again: this name is still in it, and so are the addresses of those
    # that died
    launch = None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launch = store.compare_set("launch", "", uuid.uuid4().hex).decode()
    if size > 1 and not dist.is_initialized():
        fresh = dist.PrefixStore(agree(store, rank, size), store)
        cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=fresh,
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
            device_id=device if cuda else None,
        )
    return ProcessGroup(rank, size, launch)


def agree(store: dist.Store, rank: int, size: int) -> str:
    """Return a name for this start that all of its processes know, and none of an earlier start.

    torchrun's count of restarts is none: each machine counts those of its own processes. So every process greets with a
    word of its own, rank 0 answers with its word and the greetings it has read, and whoever finds his own among them
    knows that the answer is of this start.
    """
    mine = uuid.uuid4().hex
    end = time.monotonic() + PATIENCE.total_seconds()
    others = range(1, size)
    if rank:
        store.set(f"greeting_{rank}", mine)
    while time.monotonic() < end:
        if rank:
            name, *heard = store.get("answer").decode().split()
            if mine in heard:
                store.set(f"{name}_{rank}", "heard")
                return name
        else:
            heard = [store.get(f"greeting_{r}").decode() for r in others]
            store.set("answer", " ".join([mine, *heard]))
            if store.check([f"{mine}_{r}" for r in others]):
                return mine
        time.sleep(0.05)
    raise TimeoutError(f"process {rank} of {size} waited {PATIENCE} for the others to begin")


def leave() -> None:
    """Leave the processes, so that those that go on do not wait."""
    if dist.is_initialized():
        dist.destroy_process_group()


def speaks() -> bool:
    """Return whether this process is the one of its training that prints, before it has joined the others or after."""
    return os.environ.get("RANK", "0") == "0"


def own_device(device: torch.device) -> torch.device:
    """Return the GPU of this process where torchrun started several on a machine.

    Raises:
        ConfigError: One GPU was named for all of them, or there are fewer GPUs than processes.
    """
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    if device.index is not None:
        raise ConfigError(f"--device {device}: under torchrun every process takes a GPU of its own; say cuda")
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"torchrun: process {local} of this machine has no GPU, there are {torch.cuda.device_count()}; "
            "lower --nproc-per-node, or train with --device cpu"
        )
    torch.cuda.set_device(local)  # or NCCL would put the objects of all processes on the first GPU
    return torch.device("cuda", local)
