"""A family of models: what the engine must know of a network to train, evaluate and draw it. It knows no family by name.

To add one, write its network and its phases, and put a :class:`Family` into :data:`racnn.models.FAMILIES`; configurations
then choose it by ``model.family``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from racnn.models.phase import Phase
from racnn.sections import ModelSection


class Output(Protocol):
    """What a network made of a batch. It looks one or more times ("scales"), coarsest first; lists hold one entry each."""

    @property
    def logits(self) -> list[Tensor]:
        """[B, num_classes] per scale."""

    @property
    def fused(self) -> Tensor | None:
        """[B, num_classes] logits of all scales together; None where the network has none, or not all were run."""

    @property
    def regions(self) -> list[Tensor]:
        """[B, 3], or [B, 4] of rectangles, per scale, where its view lies in the image, see :mod:`racnn.ops.regions`."""

    @property
    def proposals(self) -> list[Tensor]:
        """[B, 3] per region after the first, in the frame of the view that it was proposed from."""

    @property
    def frames(self) -> list[Tensor]:
        """[B, 3] per proposal: the region of that view."""

    @property
    def views(self) -> list[Tensor]:
        """[B, 3, h, w] per scale, normalised."""

    @property
    def descriptors(self) -> list[Tensor]:
        """[B, D] per scale: what its classifier reads."""


class Network(Protocol):
    """What the engine asks of a network, an :class:`torch.nn.Module`.

    Attributes:
        num_scales: How many times it looks.
        bounds: Least and largest side of each region after the first.
        backbones: Its trunks, :class:`racnn.models.backbone.Backbone`.
        compute_dtype: Type of the backbones' autocast; None: as the caller has it.
    """

    num_scales: int
    bounds: tuple[tuple[float, float], ...]
    backbones: nn.ModuleList
    compute_dtype: torch.dtype | None

    def __call__(self, images: Tensor, *, num_scales: int | None = None) -> Output:
        """Classify images [B, 3, H, W], floating in [0, 1] or uint8, with the first scales or all."""

    def to_pixels(self, view: Tensor) -> Tensor:
        """Return a normalised view as an image in [0, 1]."""

    def check_views(self, enlargements: Iterable[tuple[int, float]] = ()) -> None:
        """Refuse by a ConfigError what the phases of a schedule would stumble over."""


class StepByStep(Network, Protocol):
    """A network whose looks can be taken one at a time, so that a photo which needs no further one can be left alone."""

    def normalise(self, images: Tensor) -> Tensor:
        """Return images as looks are taken of them, [B, C, H, W]."""

    def look(self, source: Tensor, before: Sequence[Any]) -> Any:
        """Return the look that follows after others: a dataclass of tensors [B, ...], tuples of them, and None."""

    def output(self, looks: Sequence[Any]) -> Output:
        """Return what some looks, or all, come to."""


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        config: Its ``model`` section of a configuration.
        build: Called with such a section, ``num_classes`` and ``weights`` (whether to load those that it names); returns a
            :class:`Network`.
        phases: Its kinds of phases by name.
        schedules: Named schedules; each is called with ``model.view_sizes`` and returns the entries.
        example: A packaged configuration of it, if there is one.
    """

    config: type[ModelSection]
    build: Callable[..., Any]
    phases: Mapping[str, type[Phase]]
    schedules: Mapping[str, Callable[[Sequence[int]], list[dict[str, Any]]]]
    example: str | None = None


def combined_log_probs(logits: Sequence[Tensor], fused: Tensor | None) -> Tensor:
    """Return the log-probabilities [B, C] of all scales together: the fused ones, or else the mean of probabilities."""
    if fused is not None:
        return fused.float().log_softmax(dim=1)
    return torch.stack([x.float().softmax(dim=1) for x in logits]).mean(dim=0).log()
