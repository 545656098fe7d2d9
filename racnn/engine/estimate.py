"""How long a training takes on this machine, measured on a few photos before its first step.

Every phase is run on these photos as it will be on all: what it reads beforehand, a step, a validation. Nothing is
written, and the network that is measured is thrown away; its weights are random, for they do not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from racnn.config import Config
from racnn.data import PhotoDataset, build_data
from racnn.durations import format_duration, parse_duration
from racnn.engine.device import determinism, prepare
from racnn.engine.evaluator import predict
from racnn.engine.loop import EpochState, build_optimizer, train_one_epoch, train_only
from racnn.errors import ConfigError
from racnn.models import build_model
from racnn.models.parts import FEW
from racnn.models.phase import AlternationConfig, FittedPhase, GradientPhase

SMALLER_VIEWS = (1.0, 0.8, 0.65, 0.5)  # of the recipe's own, tried in turn where the time is short
LONG = 2.0  # seconds; after which nothing is run once more
NO_STEP = 1e-12  # a learning rate: random weights must not diverge while a step is timed


@dataclass(frozen=True)
class PhaseTime:
    """How long a phase takes.

    Attributes:
        key: The phase's key, such as ``schedule.5.alternate.0``.
        name: The phase's name, for people.
        rounds: How often it is run, at most.
        epochs: How many a round has; 0 where nothing takes steps.
        reading: Seconds of a round that do not depend on the epochs.
        epoch: Seconds of an epoch with its validation.
    """

    key: str
    name: str
    rounds: int
    epochs: int
    reading: float
    epoch: float

    def seconds(self, epochs: int | None = None) -> float:
        """Return the seconds of all rounds, with its own number of epochs or another one."""
        return self.rounds * (self.reading + self.epoch * (self.epochs if epochs is None else epochs))


def estimate(config: Config, *, device: torch.device) -> list[PhaseTime]:
    """Return how long each phase of a training takes here, at most where phases may end early.

    Raises:
        ConfigError: The network cannot be built, or not with such views.
        DataError: There are no such photos, or one cannot be read.
    """
    with determinism(config.run.deterministic, device):
        return _Meter(config, device).phases()


def format_estimate(found: Sequence[PhaseTime]) -> str:
    """Return what will be done and how long it takes, a line a phase."""
    total = format_duration(sum(each.seconds() for each in found))
    lines = [f"what will be done, about {total} here or less, judged by a few photos:"]
    for each in found:
        epochs = f"{each.epochs} epoch{'s' * (each.epochs > 1)}" if each.epochs else "in one go"
        rounds = f", {each.rounds} times" if each.rounds > 1 else ""
        lines.append(f"  {each.name:<24} {epochs + rounds:<20} {format_duration(each.seconds())}")
    return "\n".join(lines)


def settings_in_time(
    config: Config, limit: str, *, device: torch.device, suit: Callable[[int], int]
) -> list[str]:
    """Return the ``key=value`` by which a training ends within a time: fewer epochs, or smaller views where there are none.

    Args:
        config: The recipe as it is.
        limit: A length of time, such as 30m, see :func:`racnn.durations.parse_duration`.
        device: Where it will be trained.
        suit: Returns the side of a view that suits the backbone, near a wanted one.

    Raises:
        ConfigError: The shortest form takes longer, or it is no length of time.
    """
    allowed, start = parse_duration(limit, flag="--time"), time.perf_counter()

    def left() -> float:  # after measuring
        return allowed - (time.perf_counter() - start)

    found = estimate(config, device=device)
    if sum(each.seconds() for each in found) <= left():
        return []
    taught = [each for each in found if each.epochs]
    if taught:
        return _fewer_epochs(found, taught, left(), limit)
    for factor in SMALLER_VIEWS[1:]:
        sides = [suit(round(factor * side)) for side in config.model.view_sizes]
        views = tuple(min(new, old) for new, old in zip(sides, config.model.view_sizes, strict=True))
        smaller = config.model_copy(update={"model": config.model.model_copy(update={"view_sizes": views})})
        found = estimate(smaller, device=device)
        if sum(each.seconds() for each in found) <= left():
            return [f"model.view_sizes=[{', '.join(map(str, views))}]"]
    raise _too_short(limit, sum(each.seconds() for each in found), f"with views of {views[0]} px")


def _fewer_epochs(
    found: Sequence[PhaseTime], taught: Sequence[PhaseTime], seconds: float, limit: str
) -> list[str]:
    """Return the numbers of epochs that fit, each phase's by the same factor, but one at least."""
    fixed = sum(each.seconds(0) for each in found)
    least = fixed + sum(each.rounds * each.epoch for each in taught)
    if least > seconds:
        raise _too_short(limit, least, "with one epoch a phase")
    high, low = 1.0, 0.0
    for _ in range(30):  # phases that are held at one epoch leave less to the others
        factor = (low + high) / 2.0
        epochs = [max(1, int(factor * each.epochs)) for each in taught]
        total = fixed + sum(e.rounds * e.epoch * n for e, n in zip(taught, epochs, strict=True))
        low, high = (factor, high) if total <= seconds else (low, factor)
    return [f"{each.key}.epochs={max(1, int(low * each.epochs))}" for each in taught]


def _too_short(limit: str, least: float, how: str) -> ConfigError:
    return ConfigError(
        f"--time: {limit} is too short: the recipe takes about {format_duration(least)} here {how} "
        "(measured on a few photos); give it more, fewer photos, or a smaller --backbone"
    )


class _Meter:
    """A network and a few photos of each split; what a phase asks for before its first step, see
    :class:`racnn.models.phase.PhaseContext`, is timed on these and counted for all."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.data = build_data(config.data, seed=config.run.seed)
        torch.manual_seed(config.run.seed)
        self.model: Any = build_model(config.model, num_classes=len(self.data.class_names), weights=False)
        prepare(self.model, config, device)
        self.few = min(FEW, config.data.batch_size) if device.type == "cpu" else config.data.batch_size
        self.num = {split: len(photos) for split, photos in self.data.splits.items()}
        for photos in self.data.splits.values():
            _keep(photos, self.few)
        self.decoding = self._time_of_decoding(self.data.splits["train"])
        self.reading = 0.0
        self.remembers = False  # a phase before has read the looks, and the run has them on its disk

    def phases(self) -> list[PhaseTime]:
        """Return the time of every phase."""
        config, found = self.config, []
        rounds = [
            entry.rounds if isinstance(entry, AlternationConfig) else 1
            for entry in config.schedule
            for _ in (entry.alternate if isinstance(entry, AlternationConfig) else (entry,))
        ]
        keys = config.phases_by_key().items()
        for position, ((key, phase), times) in enumerate(zip(keys, rounds, strict=True)):
            phase = phase.resolved(config.model.num_scales, position)
            self.reading = 0.0
            context: Any = self
            phase.prepare(context)
            epochs = phase.epochs if isinstance(phase, GradientPhase) else 0
            num, scales = self.num[phase.photos], phase.num_scales_run(config.model.num_scales)
            look, epoch = self._with_decoding(self._looking(scales)), 0.0
            if isinstance(phase, GradientPhase):
                state = phase.between_epochs(context, {})
                phase.take_up(context, state)
                before = self.reading
                if state:
                    phase.between_epochs(context, state)
                again, self.reading = self.reading - before, before
                step = self._step(phase)
                stored = bool(self.data.splits[phase.photos].stored)
                epoch = num * (step if stored else self._with_decoding(step))
                epoch += again + self.num["val"] * look
            elif isinstance(phase, FittedPhase):
                view = self._looking(scales) / scales
                self.reading += num * phase.num_readings(config.model.num_scales) * self._with_decoding(view)
                self.reading += self.num["val"] * look
                self.remembers = True
            found.append(PhaseTime(key, phase.name, times, epochs, self.reading, epoch))
            for photos in self.data.splits.values():
                photos.pseudo_boxes = None
                photos.stored = {}
        return found

    def _step(self, phase: GradientPhase) -> float:
        """Return the seconds a photo of a training step of a phase."""
        photos = self.data.splits[phase.photos]
        photos.num_noise = phase.num_noise()
        batch = default_collate([photos[(0, i, 0, 1.0 / len(photos))] for i in range(len(photos))])
        train_only(self.model, phase)
        still = phase.model_copy(update={"lr": NO_STEP})
        optimizer = build_optimizer(self.model, still)
        state = EpochState(device=self.device, length=2, micro_batch=self.config.run.micro_batch)
        return self._time(
            lambda: list(train_one_epoch(self.model, [batch], still, optimizer, replace(state)))
        ) / len(photos)

    def _looking(self, num_scales: int) -> float:
        """Return the seconds a photo of the first scales, without reading it."""
        photos = self.data.splits["val"].without_augmentation()
        batch = default_collate([photos[(0, i)] for i in range(len(photos))])
        took = self._time(lambda: predict(self.model, [batch], device=self.device, num_scales=num_scales))
        return took / len(photos)

    def _with_decoding(self, seconds: float) -> float:
        """Return the seconds a photo with decoding; on a CPU the workers take what the network would have used."""
        return max(seconds, self.decoding) if self.device.type == "cuda" else seconds + self.decoding

    def _time_of_decoding(self, photos: PhotoDataset) -> float:
        workers = max(1, self.config.data.num_workers)
        return self._time(lambda: [photos[(0, i)] for i in range(len(photos))]) / len(photos) / workers

    def _time(self, run: Callable[[], Any]) -> float:
        """Return the seconds of the fastest of a few runs, as the first one also sets things up, or of a long one."""
        times: list[float] = []
        while len(times) < 5 and sum(times) < LONG:
            start = time.perf_counter()
            run()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        return min(times)

    # --- what a phase asks for

    def read(
        self, what: str, split: str, call: Callable[..., Any], *, most: int | None = None, **settings: Any
    ) -> Any:
        """Return what a call finds in the few photos, and count how long it takes for all."""
        photos = self.data.splits[split].without_augmentation()
        batch = default_collate([photos[(0, i)] for i in range(len(photos))])
        found: list[Any] = []
        took = self._time(lambda: found.append(call(self.model, [batch], device=self.device, **settings)))
        num = self.num[split] if most is None else min(most, self.num[split])
        self.reading += num * self._with_decoding(took / len(photos))
        return found[-1]

    def store(
        self,
        name: str,
        split: str,
        call: Callable[..., None],
        *,
        depends_on: Sequence[Tensor],
        **settings: Any,
    ) -> Tensor:
        """Return the rows of the few photos that a call gives away, and count how long it takes for all."""
        found: list[Tensor] = []
        self.read(name, split, _without_gather(call, found), **settings)
        self.data.splits[split].stored[name] = found[-1]
        return found[-1]

    def read_stored(
        self, what: str, split: str, read: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return what a call makes of the few photos, and count how long it takes for all."""
        few, found = len(self.data.splits[split]), list[dict[str, Tensor]]()
        self.model.eval()
        with torch.no_grad():
            took = self._time(lambda: found.append(read(torch.arange(few))))
        self.reading += self.num[split] * took / few
        return found[-1]

    def remember(
        self, name: str, depends_on: Sequence[Tensor | None], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return what ``make`` returns, and count it once."""
        before, made = self.reading, make()
        self.reading = before if self.remembers else self.reading
        return made

    def num_photos(self, split: str) -> int:
        """Return how many photos a split has."""
        return self.num[split]

    def attach(self, split: str, boxes: Tensor) -> None:
        """Let the few photos of a split bring along a pseudo box each."""
        self.data.splits[split].pseudo_boxes = boxes.numpy()

    def log(self, text: str) -> None:
        """Print nothing."""


def _without_gather(call: Callable[..., None], found: list[Tensor]) -> Callable[..., None]:
    """Return a call of :meth:`_Meter.store` as one of :meth:`_Meter.read`, that appends all rows together."""

    def whole(model: Any, batches: Any, **settings: Any) -> None:
        rows: list[Tensor] = []
        call(model, batches, keep=lambda _, more: rows.append(more), **settings)
        found.append(torch.cat(rows))

    return whole


def _keep(photos: PhotoDataset, num: int) -> None:
    """Leave so many photos in a split, taken evenly from all."""
    every = photos.records
    if len(every) > num:
        photos.records = [every[i * len(every) // num] for i in range(num)]
