"""From a data set to batches, in workers that leave signals to the main process."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections import defaultdict
from collections.abc import Sequence
from itertools import count

import cv2
import torch
from torch.utils.data import DataLoader

from racnn.data.build import Data
from racnn.data.dataset import Key, PhotoDataset, mix_seed
from racnn.sections import DataConfig


def train_loader(
    data: Data,
    config: DataConfig,
    *,
    seed: int,
    epoch: int,
    start_batch: int = 0,
    photos: str = "train",
    num_noise: int = 0,
    passes: int = 1,
    rank: int = 0,
    num_ranks: int = 1,
) -> DataLoader:
    """Return the batches of one epoch of 'train' or 'held_out' photos, shuffled by (seed, epoch), from a batch on.

    The batches before are not loaded. The last one may be smaller, but is no single photo, see :func:`num_left_over`. With
    ``balance: sampling`` as many photos are drawn, with replacement, every class as often as every other. Every sample
    brings ``num_noise`` random numbers along. The photos are gone through ``passes`` times, in another order each time.

    Of several processes that train together each gets its share of every batch; one that gets none, of a small last batch,
    gets the batch's first photo with a share of 0, for all must take the step.
    """
    dataset = data.splits[photos]
    dataset.num_noise = num_noise
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    if config.balance == "sampling":
        labels = torch.tensor([record.label for record in dataset.records])
        shares = 1.0 / labels.bincount()[labels]
        num = passes * len(dataset)
        order = torch.multinomial(shares, num, replacement=True, generator=generator).tolist()
    else:
        orders = [torch.randperm(len(dataset), generator=generator) for _ in range(passes)]
        order = torch.cat(orders).tolist()
    batches = _batches(order, epoch, config.batch_size)
    if num_left_over(len(order), config.batch_size) == 1:
        (last,) = batches.pop()
        batches[-1] = [key._replace(share=1.0 / (config.batch_size + 1)) for key in (*batches[-1], last)]
    batches = batches[start_batch:]
    own = [batch[rank::num_ranks] or [batch[0]._replace(share=0.0)] for batch in batches]
    return _loader(dataset, own, config)


def eval_loader(
    dataset: PhotoDataset, config: DataConfig, *, most: int | None = None, rank: int = 0, num_ranks: int = 1
) -> DataLoader:
    """Return a split's batches in order and without random changes, also those of the training photos.

    With ``most`` they are of so many photos, evenly taken from all. Of several processes each gets every so many-th batch.
    """
    num = len(dataset)
    chosen = range(num) if most is None or most >= num else [i * num // most for i in range(most)]
    batches = _batches(chosen, 0, config.eval_batch_size)
    return _loader(dataset.without_augmentation(), batches[rank::num_ranks], config)


def num_left_over(num_photos: int, batch_size: int) -> int:
    """Return how many photos the last batch has if it is smaller than the others, else 0.

    A single one joins the batch before it: of one photo batch norm has no statistics where a view ends in one cell, and bad
    ones everywhere else.
    """
    return num_photos % batch_size if num_photos > batch_size else 0


def _batches(order: Sequence[int], epoch: int, size: int) -> list[list[Key]]:
    """Return the keys of an epoch in batches; a photo that comes again counts, so that it is changed anew."""
    seen: defaultdict[int, count[int]] = defaultdict(count)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [[Key(epoch, index, next(seen[index]), 1.0 / len(part)) for index in part] for part in parts]


def _loader(dataset: PhotoDataset, batches: list[list[Key]], config: DataConfig) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=0 if dataset.stored else config.num_workers,
        pin_memory=torch.cuda.is_initialized(),  # the network is there already
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # or starting the workers would draw from the global generator
    )


def start_worker(_: int) -> None:
    """Keep each worker to one thread, and leave signals to the main process, which saves before it stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


@atexit.register
def _end_workers() -> None:
    """Kill workers that an error left behind: they ignore the signal by which multiprocessing ends daemons at exit."""
    for process in multiprocessing.active_children():
        if process.daemon:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or torch's handler would report the kill
            process.kill()
