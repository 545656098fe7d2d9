"""A network that glimpses in sequence, remembers, and decides where to look next.

    photo --glimpse at l_1--> what, where -> memory 1 -> logits 1 -> answer after one look
                                                |-> location network --> l_2 (held: no gradient flows back)
    photo --glimpse at l_2--> what, where -> memory 2 -> logits 2 -> answer after two (``answer``: these, or of both) ...

One family of three published forms, chosen by ``memory``: RAM (Mnih et al., "Recurrent Models of Visual Attention", NeurIPS 2014: 'rnn', or
'lstm'), DT-RAM's residual core (Li et al., "Dynamic Computational Time for Visual Attention", ICCV workshops 2017: 'residual'), and DRAM
(Ba et al., "Multiple Object Recognition with Visual Attention", ICLR 2015: 'two_layer').

Convention
    A place l is (x, y) in [-1, 1]; its glimpse is the region ``((1 - side) l, side)`` of the photo, see :mod:`racnn.ops.regions`, so
    that it never sticks out. Looks are counted from 1 in names and messages; lists from 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from racnn.errors import ConfigError
from racnn.models.backbone import Backbone, autocast_as, build_backbone, reason_against_view
from racnn.ops.crop import zoom
from racnn.ops.regions import whole

GREY = 0.3  # standard deviation of the pixels of a digit, whose background is 0
WITHIN = 1e-4  # random numbers nearer to 0 or 1 would be drawn from infinitely far
POINTED = 64  # width of a pointer's query and keys
State = tuple[Tensor, ...]


@dataclass
class Glimpse:
    """One look, and who sent it there.

    Attributes:
        region: [B, 3], where the finest patch lies in the photo, held.
        patches: The patches of the glimpse, [B, C, g, g] each, normalised, the finest first.
        state: [B, U], what the classifier reads.
        logits: [B, num_classes], what the memory says after this look; :class:`RecurrentOutput` makes the answer of it.
        mean: [B, 2], where the location network wanted to look; None where it was not asked.
        log_density: [B], logarithm of the density of the place that was drawn around it; None where none was drawn.
        expected: [B], what the decision will earn, in [0, 1], as far as the state that sent the eye here can tell; None where it was not asked.
        memory: What is remembered after it, [B, U] each.
        features: [B, D], what was read of its patches, as it is.
        coarse: [B, C, m, m], the map of the whole photo that later decisions point into; None but in look 1, and where there is none.
    """

    region: Tensor
    patches: State
    state: Tensor
    logits: Tensor
    mean: Tensor | None
    log_density: Tensor | None
    expected: Tensor | None
    memory: State
    features: Tensor
    coarse: Tensor | None


@dataclass
class RecurrentOutput:
    """The output of the looks that were taken, see :class:`racnn.models.family.Output`.

    Attributes:
        looks: One :class:`Glimpse` each.
        complete: Whether these are all.
        added: Whether the answer after a look is what look 1 says plus the mean of what the later ones say; or what this one says.
    """

    looks: list[Glimpse]
    complete: bool
    added: bool = False

    @property
    def logits(self) -> list[Tensor]:
        """[B, num_classes] per look, the answer after it."""
        own = [look.logits for look in self.looks]
        if not self.added:
            return own
        totals = accumulate(
            own[1:], torch.add
        )  # a GPU's cumsum is not deterministic, and is refused where all must be
        return own[:1] + [own[0] + total / number for number, total in enumerate(totals, start=1)]

    @property
    def fused(self) -> Tensor | None:
        """[B, num_classes] of the last look, whose memory holds all others; None unless all were taken."""
        return self.logits[-1] if self.complete else None

    @property
    def regions(self) -> list[Tensor]:
        """[B, 3] per look."""
        return [look.region for look in self.looks]

    @property
    def proposals(self) -> list[Tensor]:
        """[B, 3] per look after the first, in the frame of the photo."""
        return self.regions[1:]

    @property
    def frames(self) -> list[Tensor]:
        """[B, 3] per proposal: the whole photo."""
        return [whole(len(region), device=region.device) for region in self.proposals]

    @property
    def views(self) -> list[Tensor]:
        """[B, 3, v, v] per look, what the eye saw, see :func:`foveated`."""
        return [foveated(look.patches) for look in self.looks]

    @property
    def descriptors(self) -> list[Tensor]:
        """[B, U] per look."""
        return [look.state for look in self.looks]


class Recurrent(nn.Module):
    """The sequence of glimpses.

    Args:
        num_classes: Number of classes.
        backbone: 'patch', one linear layer over the grey pixels of a glimpse as RAM has it, or a name for
            :func:`racnn.models.backbone.build_backbone`, whose map is averaged.
        weights: What the backbone starts from.
        frozen_stages: How many first stages of the backbone are never trained, see :meth:`Backbone.freeze`.
        view_sizes: Side in pixels of each look's patches, all the same; their number is the number of looks.
        patches: How many patches a glimpse has, each twice as wide as the one before; what sticks out repeats the edge.
        side: Side of the finest patch, as a fraction of the photo's.
        first: Where look 1 is: 'whole' sees all of the photo in one patch, 'centre', 'random' (in use the centre), or 'context', where
            the location network sends it from a small view of the whole.
        moves: Who says where the next look is: 'learned', the location network; or as controls 'random', or 'centre' for all looks. In use
            random places are drawn of the photo itself, so that the same photo is always looked at alike.
        memory: 'rnn', 'lstm', 'residual' or 'two_layer'.
        units: U of the memory; half as many of what and of where.
        grid: Places a side that glimpses are moved to, from border to border; 0: they go anywhere. What a trunk that stays as loaded makes
            of all of them can be read once, see :class:`racnn.models.recurrent.phases.FrozenPolicy`.
        descriptor: 'mean' of the backbone's map, or its signed 'root' at length 1 a patch, see :class:`racnn.models.RACNN`.
        coarse_map: Cells a side of a map of the whole photo that the location network points into, see :class:`Pointer`; 0: it is told
            what is remembered and no more. Needs ``first`` 'whole' and a backbone, whose map has no fewer.
        answer: 'last', what the memory says after a look, or 'added', what look 1 says plus the mean of what later ones say.
        dropout: Share of the features that are left out at random in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "patch",
        weights: str | None = None,
        frozen_stages: int = 0,
        view_sizes: Sequence[int] = (12,) * 6,
        patches: int = 3,
        side: float = 0.2,
        first: str = "random",
        moves: str = "learned",
        memory: str = "rnn",
        units: int = 256,
        grid: int = 0,
        descriptor: str = "mean",
        coarse_map: int = 0,
        answer: str = "last",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        assert not coarse_map or (first == "whole" and backbone != "patch"), (first, backbone)
        self.grid, self.root, self.coarse_map = grid, descriptor == "root", coarse_map
        self.added = answer == "added"
        self.view_sizes = tuple(view_sizes)
        self.num_scales = len(self.view_sizes)
        self.num_classes = num_classes
        self.patches, self.side, self.first, self.moves = patches, side, first, moves
        self.bounds = ((0.0, 1.0),) * (self.num_scales - 1)  # its sides never vary
        self.compute_dtype: torch.dtype | None = None
        size = self.view_sizes[0]
        mean: tuple[float, ...]
        std: tuple[float, ...]
        if backbone == "patch":
            self.backbones = nn.ModuleList()
            width, mean, std = size * size, (0.0,) * 3, (GREY,) * 3
        else:
            trunk = build_backbone(backbone, weights=weights)
            trunk.freeze(frozen_stages)
            self.backbones = nn.ModuleList([trunk])
            width, mean, std = trunk.channels, trunk.mean, trunk.std
        half = units // 2
        self.what = nn.Sequential(nn.Dropout(dropout), nn.Linear(width * patches, half), nn.ReLU())
        self.where = nn.Sequential(nn.Linear(3, half), nn.ReLU())
        self.joined_what = nn.Linear(half, units)
        self.joined_where = nn.Linear(half, units)
        self.units = units
        self.memory = MEMORIES[memory](units)
        self.context = (
            nn.Sequential(nn.Linear(width, half), nn.ReLU(), nn.Linear(half, units), nn.Tanh())
            if first == "context"
            else None
        )
        self.classifier = nn.Linear(units, num_classes)
        self.location = (
            Pointer(units, width, coarse_map, side)
            if coarse_map
            else nn.Sequential(nn.Linear(units, half), nn.ReLU(), nn.Linear(half, 2), nn.Tanh())
        )
        self.baseline = nn.Linear(units, 1)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(
        self,
        images: Tensor,
        *,
        num_scales: int | None = None,
        noise: Tensor | None = None,
        spread: float = 0.1,
        stored: Tensor | None = None,
    ) -> RecurrentOutput:
        """Look at the images, and say after each look what they show.

        Args:
            images: [B, 3, H, W], floating in [0, 1] or uint8.
            num_scales: Take only the first looks.
            noise: [B, 2 R] in [0, 1], R the number of looks that are taken: draws the place of each around what the location network
                says. Without it that place itself is taken.
            spread: Standard deviation of what is drawn, in units of a place.
            stored: [B, P, D], from :meth:`read_places`, in place of the images, which are then not looked at.
        """
        last = self.num_scales if num_scales is None else num_scales
        assert 1 <= last <= self.num_scales, num_scales
        source = self.normalise(images) if stored is None else stored
        if self.moves == "random" and noise is None:
            noise = numbers_of(source, 2 * last)
        drawn = [None] * last if noise is None else noise.unflatten(1, (-1, 2)).unbind(dim=1)
        looks: list[Glimpse] = []
        for own, _ in zip(drawn, range(last), strict=False):
            looks.append(self.look(source, looks, drawn=own, spread=spread))
        return self.output(looks)

    def look(
        self, source: Tensor, before: Sequence[Glimpse], *, drawn: Tensor | None = None, spread: float = 0.1
    ) -> Glimpse:
        """Return the look that follows after others.

        Args:
            source: Images as :meth:`normalise` returns them, or rows of :meth:`read_places`.
            before: The looks before.
            drawn: [B, 2] in [0, 1], the part of :meth:`forward`'s noise that this place is drawn by.
            spread: Standard deviation of what is drawn, in units of a place.
        """
        state, number = before[-1].memory if before else self.start(source), len(before)
        if self.moves == "random" and drawn is None:
            drawn = numbers_of(source, 2 * number + 2)[:, -2:]
        coarse = before[0].coarse if before else None
        place, mean, log_density, expected = self._decide(state, number, drawn, spread, coarse)
        region = self._region(place, number)
        if source.ndim == 3:  # what was read of the places, not the photo
            features = source[torch.arange(len(source), device=source.device), self._number_of(place, number)]
            patches = [source.new_zeros(len(source), 3, 1, 1)]
            coarse = self._stored_map(source)
        else:
            patches = self._cut(source, region)
            features, coarse = self._features(patches, mapped=number == 0)
        state = self.remembered(features, region, state)
        reads = self.memory.reads(state)
        return Glimpse(
            region=region,
            patches=tuple(patches),
            state=reads,
            logits=self.classifier(reads),
            mean=mean,
            log_density=log_density,
            expected=expected,
            memory=state,
            features=features,
            coarse=None if number else coarse,
        )

    def remembered(self, features: Tensor, region: Tensor, state: State) -> State:
        """Return what is remembered after a look.

        Args:
            features: [B, D], what was read of its patches, as they are.
            region: [B, 3], where it was.
            state: What was remembered before.
        """
        what = self.what(self._described(features))
        return self.memory(F.relu(self.joined_what(what) + self.joined_where(self.where(region))), state)

    def output(self, looks: Sequence[Glimpse]) -> RecurrentOutput:
        """Return the output of the first looks, or of all."""
        return RecurrentOutput(list(looks), len(looks) == self.num_scales, self.added)

    def start(self, source: Tensor) -> State:
        """Return the memory before the first look."""
        state = tuple(source.new_zeros(len(source), self.units) for _ in range(self.memory.num_states))
        if self.context is None:
            return state
        size = self.view_sizes[0]
        view = zoom(source, whole(len(source), device=source.device), (size, size))
        return self.memory.steered(state, self.context(self._described(self._features([view])[0]).detach()))

    def _decide(
        self, state: State, number: int, drawn: Tensor | None, spread: float, coarse: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Return where a look goes, [B, 2] and held, and what a :class:`Glimpse` keeps of the decision."""
        decides = self.memory.decides(state)
        if self.moves != "learned" or (number == 0 and self.first != "context"):
            is_random = self.moves == "random" or (self.moves == "learned" and self.first == "random")
            if is_random and drawn is not None:
                return 2.0 * drawn - 1.0, None, None, None
            return decides.new_zeros(len(decides), 2), None, None, None
        mean: Tensor = self.location(decides) if coarse is None else self.location(decides, coarse.detach())
        expected = torch.sigmoid(self.baseline(decides.detach()))[:, 0]
        if drawn is None:
            return mean.detach(), mean, None, expected
        place = mean.detach() + spread * torch.special.ndtri(drawn.clamp(WITHIN, 1.0 - WITHIN))
        # of the place as it was drawn, not as it is used: beyond the border the two differ
        distance = (place - mean) / spread
        log_density = (-0.5 * distance.square() - math.log(spread * math.sqrt(2.0 * math.pi))).sum(dim=1)
        return place.clamp(-1.0, 1.0), mean, log_density, expected

    def _region(self, place: Tensor, number: int) -> Tensor:
        if number == 0 and self.first == "whole":
            return whole(len(place), device=place.device)
        side = torch.full_like(place[:, :1], self.side)
        if self.grid:
            place = self._step(place) * (2.0 / (self.grid - 1)) - 1.0
        return torch.cat([(1.0 - self.side) * place, side], dim=1)

    def _step(self, place: Tensor) -> Tensor:
        """Return the column and row [B, 2] of the place of the grid that is nearest."""
        return ((place + 1.0) / 2.0 * (self.grid - 1)).round()

    def _number_of(self, place: Tensor, number: int) -> Tensor:
        """Return which row of :meth:`read_places` a look sees, [B]."""
        if number == 0 and self.first == "whole":
            return torch.zeros(len(place), dtype=torch.int64, device=place.device)
        column, row = self._step(place).long().unbind(dim=1)
        return 1 + row * self.grid + column

    @torch.no_grad()
    def read_places(self, images: Tensor) -> Tensor:
        """Return what is read of the whole of each image, of all places of the grid, row by row, and the cells of the coarse map.

        Returns:
            [B, 1 + grid^2 + coarse_map^2, D].
        """
        source = self.normalise(images)
        steps = torch.arange(self.grid, device=source.device) * (2.0 / (self.grid - 1)) - 1.0
        region = whole(len(source), device=source.device)
        seen, coarse = self._features(self._cut(source, region), mapped=True)
        rows = [seen]
        for y in steps:
            for x in steps:
                place = torch.stack([x, y]).expand(len(source), 2)
                rows.append(self._features(self._cut(source, self._region(place, 1)))[0])
        cells = [] if coarse is None else [coarse.flatten(2).transpose(1, 2)]
        return torch.cat([torch.stack(rows, dim=1), *cells], dim=1)

    def _stored_map(self, rows: Tensor) -> Tensor | None:
        """Return the coarse map of rows of :meth:`read_places`."""
        if not self.coarse_map:
            return None
        return rows[:, 1 + self.grid**2 :].transpose(1, 2).unflatten(2, (self.coarse_map, self.coarse_map))

    def _cut(self, source: Tensor, region: Tensor) -> list[Tensor]:
        """Return the patches of a glimpse, the finest first."""
        size = self.view_sizes[0]
        wider = [torch.cat([region[:, :2], 2.0**j * region[:, 2:]], dim=1) for j in range(self.patches)]
        return [zoom(source, each, (size, size)) for each in wider]

    def _features(self, patches: Sequence[Tensor], *, mapped: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return what is read of patches, joined, [B, D], and the coarse map of the first one if it is asked for and there is one."""
        if not self.backbones:
            return torch.cat([patch.flatten(1) for patch in patches], dim=1), None
        trunk = cast(Backbone, self.backbones[0])
        with autocast_as(self.compute_dtype, patches[0]):
            maps = trunk(torch.cat(list(patches))).float()
        means = torch.cat(maps.mean(dim=(2, 3)).chunk(len(patches)), dim=1)
        size = (self.coarse_map, self.coarse_map)
        return means, F.adaptive_avg_pool2d(maps[: len(means)], size) if mapped and self.coarse_map else None

    def _described(self, features: Tensor) -> Tensor:
        """Return the descriptors of patches, [B, D], from what was read of them."""
        if not self.root:
            return features
        means = features.unflatten(1, (-1, cast(Backbone, self.backbones[0]).channels))
        # at a mean size of 1, as layers expect it
        roots = means.sign() * means.abs().clamp_min(1e-12).sqrt()  # the slope of the root of 0 is infinite
        return (F.normalize(roots, dim=2) * math.sqrt(means.shape[2])).flatten(1)

    def normalise(self, images: Tensor) -> Tensor:
        """Return images, floating in [0, 1] or uint8, with the mean and standard deviation of what reads them.

        Where that is pixels they are grey, [B, 1, H, W].
        """
        if images.dtype == torch.uint8:
            images = images.float() / 255.0
        images = (images - self.mean) / self.std
        return images if self.backbones else images.mean(dim=1, keepdim=True)

    def to_pixels(self, view: Tensor) -> Tensor:
        """Return a normalised view as an image in [0, 1], the inverse of :meth:`normalise`."""
        return (view * self.std + self.mean).clamp(0.0, 1.0)

    def check_views(self, enlargements: Iterable[tuple[int, float]] = ()) -> None:
        """Refuse at once patches of a size that the backbone does not take, or whose map is coarser than the coarse map.

        Raises:
            ConfigError: They are.
        """
        for backbone in self.backbones:
            size = self.view_sizes[0]
            trunk = cast(Backbone, backbone)
            if reason := reason_against_view(trunk, size):
                raise ConfigError(f"model.view_sizes: the backbone takes no views of {size} px ({reason})")
            if self.coarse_map and (reason := reason_against_view(trunk, size, _Cells(self.coarse_map))):
                raise ConfigError(f"model.coarse_map: {reason} of views of {size} px")


def foveated(patches: Sequence[Tensor]) -> Tensor:
    """Return a glimpse as one picture, sharp in the middle and coarser around it.

    Args:
        patches: [B, C, g, g] each, the finest first, each twice as wide as the one before; C is 1 or 3.

    Returns:
        [B, 3, v, v], v = g 2^(P - 1) of P patches: as wide as the last, with the pixels of the first.
    """
    picture = patches[0]
    for number, patch in enumerate(patches[1:], start=1):
        wide = patch.repeat_interleave(2**number, dim=2).repeat_interleave(2**number, dim=3)
        side = picture.shape[-1]
        inner = slice(side // 2, side // 2 + side)
        wide[..., inner, inner] = picture
        picture = wide
    return picture.expand(-1, 3, -1, -1)


def numbers_of(source: Tensor, num: int) -> Tensor:
    """Return numbers [B, num] in [0, 1) that depend on each photo [B, C, H, W] alone, and look random."""
    weights = torch.arange(1, source[0].numel() + 1, device=source.device, dtype=torch.float64)
    seed = (source.double().flatten(1) * (weights * 0.6180339887).frac()).sum(dim=1, keepdim=True)
    places = torch.arange(1, num + 1, device=source.device, dtype=torch.float64)
    return ((seed * 12.9898 + places * 78.233).sin() * 43758.5453).frac().abs().to(source.dtype)


class _Cells(nn.Module):
    """Refuses maps of fewer cells a side than are asked for."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self.num = num

    def forward(self, features: Tensor) -> None:
        if min(features.shape[2:]) < self.num:
            found = " x ".join(map(str, features.shape[2:]))
            raise ValueError(f"{self.num} cells a side are more than the {found} of the backbone's map")


class Pointer(nn.Module):
    """A location network that points into a coarse map of the whole photo, which what is remembered alone says little about.

    Attention over the cells, whose query is made of what is remembered; the place is the mean of the cells' middles.

    Args:
        units: Width of what is remembered.
        channels: C of the map.
        num: m, its cells a side.
        side: Side of a glimpse; a middle nearer to the border than half of it is that of the outermost place.
    """

    middles: Tensor

    def __init__(self, units: int, channels: int, num: int, side: float) -> None:
        super().__init__()
        self.register_buffer("middles", middles(num, side), persistent=False)
        self.query = nn.Linear(units, POINTED)
        self.key = nn.Linear(channels, POINTED)
        self.bias = nn.Linear(channels, 1)

    def forward(self, decides: Tensor, coarse: Tensor) -> Tensor:
        """Return the place [B, 2] from what decides, [B, U], and the map [B, C, m, m]."""
        cells = coarse.flatten(2).transpose(1, 2)
        cells = cells.sign() * cells.abs().sqrt()
        cells = cells / cells.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-6)
        match = (self.key(cells) @ self.query(decides)[..., None])[..., 0] / math.sqrt(POINTED)
        weights = (match + self.bias(cells)[..., 0]).softmax(dim=1)
        return weights @ self.middles


def cell_middles(num: int, side: float) -> Tensor:
    """Return where the middles of cells, so many a side, lie on an axis, [num], in units of a place; near the border beyond [-1, 1]."""
    return ((2.0 * torch.arange(num) + 1.0) / num - 1.0) / max(1.0 - side, 1e-6)


def middles(num: int, side: float) -> Tensor:
    """Return the places [num^2, 2], row by row, that are nearest to the middles of cells, so many a side, for glimpses of a side."""
    steps = cell_middles(num, side).clamp(-1.0, 1.0)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


class _OneLayer(nn.Module):
    """A memory whose one state both answers and, held, decides: where the eye goes must not shape what it sees (RAM).

    Args:
        units: Width of the state.
    """

    num_states = 1

    def __init__(self, units: int) -> None:
        super().__init__()
        self.keep = nn.Linear(units, units)

    def reads(self, state: State) -> Tensor:
        """Return what the classifier reads, [B, U]."""
        return state[0]

    def decides(self, state: State) -> Tensor:
        """Return what the location network reads, [B, U]."""
        return state[0].detach()

    def steered(self, state: State, context: Tensor) -> State:
        """Return the state with a context, [B, U], that may steer and not answer; this memory has no part of that kind."""
        raise AssertionError("one state cannot steer without answering")


class _RNN(_OneLayer):
    """``h = relu(W_h h + W_g g)``: RAM's core."""

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.take = nn.Linear(units, units, bias=False)

    def forward(self, glimpse: Tensor, state: State) -> State:
        return (F.relu(self.keep(state[0]) + self.take(glimpse)),)


class _Residual(_OneLayer):
    """``h = relu(g + W h)``: DT-RAM's core, to which a new glimpse is added as it is."""

    def forward(self, glimpse: Tensor, state: State) -> State:
        return (F.relu(glimpse + self.keep(state[0])),)


class _LSTM(_OneLayer):
    """An LSTM, as RAM has it where the eye moves for long."""

    num_states = 2

    def __init__(self, units: int) -> None:
        nn.Module.__init__(self)
        self.cell = nn.LSTMCell(units, units)

    def forward(self, glimpse: Tensor, state: State) -> State:
        hidden, cell = self.cell(glimpse, (state[0], state[1]))
        return hidden, cell


class _TwoLayer(_LSTM):
    """DRAM's two: the first LSTM knows what was seen and answers; the second is fed by it, held, and decides where to look.

    A context starts the second alone, so that it steers and cannot answer.
    """

    num_states = 4

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.second = nn.LSTMCell(units, units)

    def forward(self, glimpse: Tensor, state: State) -> State:
        first = super().forward(glimpse, state[:2])
        hidden, cell = self.second(first[0].detach(), (state[2], state[3]))
        return *first, hidden, cell

    def decides(self, state: State) -> Tensor:
        return state[2]

    def steered(self, state: State, context: Tensor) -> State:
        return state[0], state[1], context, state[3]


MEMORIES: dict[str, type[_OneLayer]] = {
    "rnn": _RNN,
    "lstm": _LSTM,
    "residual": _Residual,
    "two_layer": _TwoLayer,
}
