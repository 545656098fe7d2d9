"""Backbones: networks from a view to a feature map, under one small contract."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from racnn.compat import import_torchvision
from racnn.errors import ConfigError, WeightsError, did_you_mean
from racnn.models.attention import GATES
from racnn.models.recompute import run_in_segments
from racnn.models.weights import load_trunk, packaged_weights, read_weights

# torchvision's first layers after a map.
HEADS = ("avgpool", "classifier", "fc", "head", "flatten", "dropout")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A trunk with what its user must know of it.

    Args:
        trunk: Maps a normalised view [B, 3, H, W] to features [B, channels, H / stride, W / stride].
        channels: Channels of the features.
        stride: View pixels per feature cell.
        mean: Per channel, of images in [0, 1]; the view is ``(image - mean) / std``.
        std: Per channel.
        source: torchvision's name, for ``weights='imagenet'``; None where there is no such file.
        left_out: Names of the original network's layers that the trunk has no use for; files may hold them.
        inner: Where the last block begins: of a sequential trunk the index of the first layer of its last block, of a timm network that of the map that
            :meth:`forward_with_inner` reads; 0 where there is no such block.
    """

    def __init__(
        self,
        trunk: nn.Module,
        *,
        channels: int,
        stride: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        source: str | None = None,
        left_out: tuple[str, ...] = (),
        inner: int = 0,
    ) -> None:
        super().__init__()
        self.features = trunk  # torchvision's name, so that its files fit as they are
        self.channels = channels
        self.stride = stride
        self.mean = mean
        self.std = std
        self.source = source
        self.left_out = ("classifier", "fc", "head", *left_out)
        self.inner = inner
        self.gates = nn.ModuleDict()  # by the number of the stage that they stand after
        self.frozen_layers = 0
        self.recompute = False
        self.note = ""  # what should be known of the weights that it started from

    def freeze(self, stages: int) -> None:
        """Keep the first stages, each up to where the map has half as many cells a side, as they were loaded.

        Their features are generic, and a training step saves their backward pass and most of the memory. Fast R-CNN
        (Girshick 2015, section 4.5) trains VGG-16 from conv3_1 up, which is ``stages=2``.

        Raises:
            ConfigError: The trunk has no so many stages, or is no sequence of layers that is known here.
        """
        layers, ends = self._stages()
        if stages > len(ends):
            most = f"at most {len(ends)} can be frozen" if ends else "no stages of it can be frozen"
            raise ConfigError(f"model.frozen_stages: {stages}, but in this backbone {most}")
        self.frozen_layers = ([0, *ends])[stages]
        for layer in layers[: self.frozen_layers]:
            layer.requires_grad_(False)

    def num_stages(self) -> int:
        """Return how many stages can be frozen; 0 where none are known."""
        return len(self._stages()[1])

    def _stages(self) -> tuple[list[nn.Module], list[int]]:
        """Return the layers of the trunk, and after how many of them its stages end, but for the last; none if unknown."""
        if isinstance(self.features, _TimmTrunk):
            return self.features.stages()
        layers = list(self.features) if isinstance(self.features, nn.Sequential) else []
        return layers, [i + 1 for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]

    def trainable(self) -> nn.Module:
        """Return the part of the trunk that training may change; its gates are :attr:`gates`."""
        if not self.frozen_layers:
            return self.features
        return nn.Sequential(*self._stages()[0][self.frozen_layers :])

    def add_gates(self, kind: str, stages: Sequence[int] = ()) -> None:
        """Put attention after stages of the trunk, see :mod:`racnn.models.attention`; it starts as if it were not there.

        Args:
            kind: A key of ``GATES``.
            stages: Counted from 1; empty: all that are not frozen.

        Raises:
            ConfigError: The trunk's stages are not known, or it has none of such a number, or that is frozen.
        """
        layers, ends = self._stages()
        every = [*ends, len(layers)]
        first = 1 + sum(end <= self.frozen_layers for end in ends)
        if not ends:
            raise ConfigError(
                "model.gates: the stages of this backbone are not known, so that no gate can stand after one"
            )
        if wrong := [stage for stage in stages if not first <= stage <= len(every)]:
            raise ConfigError(
                f"model.gated_stages: {wrong[0]}, but the stages of this backbone that are not frozen are {first} to {len(every)}"
            )
        for stage in stages or range(first, len(every) + 1):
            self.gates[str(stage)] = GATES[kind](self._channels_after(every[stage - 1]), self.channels)

    def _channels_after(self, num_layers: int) -> int:
        """Return how many channels the map after so many layers has."""
        # on the meta device shapes are known and nothing is computed
        part = copy.deepcopy(nn.Sequential(*self._stages()[0][:num_layers])).to("meta").eval()
        return int(part(torch.zeros(1, 3, 224, 224, device="meta")).shape[1])

    def frozen_part(self) -> nn.Module:
        """Return the part of the trunk before that; of none, what returns the view as it is."""
        return nn.Sequential(*self._stages()[0][: self.frozen_layers])

    def forward_rest(self, maps: Tensor, query: Tensor | None = None) -> Tensor:
        """Return features [B, channels, h, w] of what :meth:`frozen_part` made of views."""
        if self.gates:
            return self._gated(maps, query, start=self.frozen_layers)[0]
        return self._run(self.trainable(), maps)

    def forward(self, view: Tensor, query: Tensor | None = None) -> Tensor:
        """Return features [B, channels, h, w] of a normalised view [B, 3, H, W].

        Args:
            view: The view.
            query: [B, Q], what gates are steered by; None: nothing.
        """
        return self._gated(view, query)[0] if self.gates else self._run(self.features, view)

    def forward_with_inner(self, view: Tensor, query: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the features of a normalised view and those that the last block is given: [B, channels, h, w], [B, C, h', w'].

        The last block is the most specialised one: what it makes of a photo tells the class, what it is given still tells
        the object from its surroundings. Of a timm network it is the last block or stage, and its map may be the finer one.
        Where no such block is known (``inner`` is 0), both are the features. For reading boxes, without a gradient.
        """
        if self.gates:
            return self._gated(view, query)
        if isinstance(self.features, _TimmTrunk):
            return self.features.forward_with_inner(view)
        if not self.inner:
            features: Tensor = self.features(view)
            return features, features
        assert isinstance(self.features, nn.Sequential)
        inner: Tensor = self.features[: self.inner](view)
        return self.features[self.inner :](inner), inner

    def _run(self, part: nn.Module, maps: Tensor) -> Tensor:
        features: Tensor = run_in_segments(part, maps) if self.recompute else part(maps)
        return features

    def _gated(self, maps: Tensor, query: Tensor | None, start: int = 0) -> tuple[Tensor, Tensor]:
        """Return the features, and the map that the last block is given, of the maps after so many layers."""
        layers, ends = self._stages()
        trunk = self.features
        before_last = (
            trunk.before_last() if isinstance(trunk, _TimmTrunk) else len(layers) + (self.inner or 0)
        )
        stage_of = {end: str(stage) for stage, end in enumerate([*ends, len(layers)], start=1)}
        inner = maps
        for end in sorted({*stage_of, before_last}):
            if end > start:
                maps = self._run(nn.Sequential(*layers[start:end]), maps)
                start = end
                if (stage := stage_of.get(end, "")) in self.gates:
                    maps = self.gates[stage](maps, query)
            if end == before_last:
                inner = maps
        return maps, inner

    def inner_channels(self) -> int:
        """Return how many channels the inner map of :meth:`forward_with_inner` has."""
        # on the meta device shapes are known and nothing is computed
        network = copy.deepcopy(self).to("meta").eval()
        for side in (224, 256, 448):  # of networks that take views of one size only, most take one of these
            try:
                return network.forward_with_inner(torch.zeros(1, 3, side, side, device="meta"))[1].shape[1]
            except (RuntimeError, AssertionError, ValueError):
                continue
        raise ConfigError("model.apn: response: this backbone's inner map could not be found")

    def save_memory(self) -> None:
        """Keep few activations and compute the others again in the backward pass, see :mod:`racnn.models.recompute`."""
        self.recompute = True


def autocast_as(dtype: torch.dtype | None, view: Tensor) -> AbstractContextManager[object]:
    """Return the context in which a backbone computes on a view's device in a type; None: in the caller's."""
    return nullcontext() if dtype is None else torch.autocast(view.device.type, dtype=dtype)


def vgg(name: str) -> Backbone:
    """Return one of torchvision's VGG trunks up to the ReLU after the last convolution, without the last pool."""
    import_torchvision()
    from torchvision.models import vgg as zoo

    plan = {"11": "A", "13": "B", "16": "D", "19": "E"}[name.removeprefix("vgg").removesuffix("_bn")]
    layers = zoo.make_layers(zoo.cfgs[plan], batch_norm=name.endswith("_bn"))[:-1]
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    last_block = 3 if name.endswith("_bn") else 2  # layers: convolution, batch norm, ReLU
    return Backbone(layers, channels=512, stride=16, source=name, inner=-last_block)


def tiny() -> Backbone:
    """Return a small VGG with batch norm, stride 4, for the demo and the tests; it learns from scratch in minutes."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 16, 0, 48, 48, 0, 96, 96):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        channels = width
    return Backbone(nn.Sequential(*layers), channels=channels, stride=4, inner=-3)


def mini() -> Backbone:
    """Return four strided convolutions with batch norm, stride 16: about what six glimpses at digits cost, to compare with."""
    layers: list[nn.Module] = []
    channels = 3
    for width, side in ((8, 5), (16, 3), (32, 3), (64, 3)):
        layers += [
            nn.Conv2d(channels, width, side, stride=2, padding=side // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        channels = width
    return Backbone(nn.Sequential(*layers), channels=channels, stride=16, inner=-3)


VGG_NAMES = ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")
BACKBONES: dict[str, Callable[[], Backbone]] = {
    "tiny": tiny,
    "mini": mini,
    **{name: partial(vgg, name) for name in VGG_NAMES},
}


class _TimmTrunk(nn.Module):
    """A timm network from a view to the map that it would pool, channels first; transformers' tokens as a map.

    Args:
        network: From ``timm.create_model``. Its layers after the map, which the trunk has no use for, are taken out.

    Attributes:
        left_out: Names of the layers that were taken out.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.channels_last = str(getattr(network, "output_fmt", "")).endswith("NHWC")
        # the efficientnets yield the ends of stages, or if told so, all blocks
        parameters = inspect.signature(network.forward_intermediates).parameters
        self.options = {"extra_blocks": True} if "extra_blocks" in parameters else {}
        # layers stand in the order of their use: from the first of the head's on, none is needed
        classifiers = network.default_cfg["classifier"]
        classifiers = [classifiers] if isinstance(classifiers, str) else classifiers
        head = {"global_pool", "pre_logits", "fc_norm", "head_drop", *(c.split(".")[0] for c in classifiers)}
        layers = [name for name, _ in network.named_children()]
        self.left_out = tuple(layers[min(map(layers.index, head.intersection(layers))) :])
        for name in self.left_out:
            setattr(network, name, nn.Identity())

    def forward(self, view: Tensor) -> Tensor:
        return self.forward_with_inner(view)[0]

    def stages(self) -> tuple[list[nn.Module], list[int]]:
        """Return the layers of an EfficientNet or MobileNetV2, and after how many its stages end, but for the last."""
        network = self.network
        if type(network).__name__ != "EfficientNet":
            return [], []
        layers = [network.conv_stem, network.bn1, *network.blocks, network.conv_head, network.bn2]
        names = [info["module"] for info in network.feature_info]
        ends = [2 if name == "bn1" else int(name.removeprefix("blocks.")) + 3 for name in names]
        return layers, ends[:-1]

    def before_last(self) -> int:
        """Return after how many of :meth:`stages` the map stands that :meth:`forward_with_inner` returns as the inner one."""
        return 2 + len(self.network.blocks) - 1

    def forward_with_inner(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and the last map but one that timm yields; it may have more cells than the features."""
        features: Tensor
        features, (inner, last) = self.network.forward_intermediates(view, indices=2, **self.options)
        tokens = features.ndim == 3
        if tokens:  # [B, N, C], those of the map come last
            height, width = last.shape[2:]
            features = features[:, -height * width :].unflatten(1, (height, width))
        if tokens or self.channels_last:
            features = features.permute(0, 3, 1, 2).contiguous()
        return features, inner


def timm_backbone(name: str, *, pretrained: bool = False) -> Backbone:
    """Return any timm network by name, cut before its pooling.

    Raises:
        ConfigError: timm is not installed, or knows no such network, or it yields no feature map.
        WeightsError: The pretrained weights cannot be downloaded.
    """
    import_torchvision()  # timm imports it too
    try:
        import timm
    except ImportError:
        raise ConfigError(f"model.backbone: timm/{name} needs timm: pip install timm") from None
    if name.split(".")[0] not in timm.list_models():
        raise ConfigError(
            f"model.backbone: timm has no network '{name}'{did_you_mean(name, timm.list_models())}"
        )
    create = partial(timm.create_model, name, pretrained=pretrained, num_classes=0)
    try:
        try:  # transformers that can do it then take views of any size, and resize their embeddings of positions
            network: Any = create(dynamic_img_size=True)
        except TypeError:
            network = create()
    except RuntimeError as error:
        raise ConfigError(f"model.backbone: timm/{name} cannot be used as a backbone: {error}") from None
    except OSError as error:
        raise WeightsError(
            f"model.weights: could not download the weights of timm/{name} ({error}); "
            "fetch the file by hand and give its path as model.weights"
        ) from None
    settings = network.default_cfg
    try:
        trunk = _TimmTrunk(network)
        # on the meta device shapes are known and nothing is computed
        view = torch.zeros(1, *settings["input_size"], device="meta")
        channels = copy.deepcopy(trunk).to("meta").eval()(view).shape[1]
    except (AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"model.backbone: timm/{name} cannot be used as a backbone: timm {timm.__version__} yields no map of features "
            f"of it ({str(error).splitlines()[0]})"
        ) from None
    return Backbone(
        trunk,
        channels=channels,
        stride=network.feature_info[-1]["reduction"],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        left_out=trunk.left_out,
        inner=-2,
    )


class _TokensToMap(nn.Module):
    """torchvision's vision transformer from a view of any size to the map of its patches' tokens.

    The embeddings of positions are resized where the view has another number of patches than the network was made for.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.conv_proj = network.conv_proj
        self.encoder = network.encoder
        self.class_token = network.class_token

    def forward(self, view: Tensor) -> Tensor:
        patches = self.conv_proj(view)
        height, width = patches.shape[2:]
        tokens = torch.cat([self.class_token.expand(len(view), -1, -1), patches.flatten(2).mT], dim=1)
        tokens = tokens + self._positions(height, width)
        encoder = self.encoder
        found = encoder.ln(encoder.layers(encoder.dropout(tokens)))[:, 1:]
        return found.mT.unflatten(2, (height, width)).contiguous()

    def _positions(self, height: int, width: int) -> Tensor:
        """Return the embeddings [1, 1 + height * width, C]."""
        own: Tensor = self.encoder.pos_embedding
        side = math.isqrt(own.shape[1] - 1)
        if (height, width) == (side, side):
            return own
        grid = own[:, 1:].mT.unflatten(2, (side, side))
        resized = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
        return torch.cat([own[:, :1], resized.flatten(2).mT], dim=1)


def torchvision_backbone(name: str) -> Backbone:
    """Return any classification network of torchvision by name, cut before its pooling.

    Raises:
        ConfigError: torchvision knows no such network, or it is no classification network of images.
    """
    import_torchvision()
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(f"model.backbone: torchvision has no network '{name}'{did_you_mean(name, known)}")
    oldest = name in ("googlenet", "inception_v3")
    plain = {"init_weights": False} if oldest else {}  # theirs takes minutes
    wanted = torch.empty(0).device
    with torch.device("cpu"):  # on the meta device some cannot be made
        network: Any = torchvision.models.get_model(name, weights=None, **plain).to(wanted)
    preset = next(iter(torchvision.models.get_model_weights(name))).transforms()
    children = dict(network.named_children())
    layers: nn.Module
    if "encoder" in children:
        layers, inner = _TokensToMap(network), 0
    else:
        names = list(itertools.takewhile(lambda key: key not in HEADS, children))
        kept = {key: children[key] for key in names if not key.lower().startswith("aux")}
        if len(kept) == 1:
            (layers,) = kept.values()
        else:
            layers = nn.Sequential()
            for key, child in kept.items():
                # of a list of blocks every one is a layer
                layers.add_module(key, nn.Sequential(*child) if isinstance(child, nn.ModuleList) else child)
        if name.startswith("densenet"):
            layers.add_module("relu", nn.ReLU())
        inner = _last_block(layers)
    side = 224
    with torch.no_grad():  # on the meta device shapes are known and nothing is computed
        found = copy.deepcopy(layers).to("meta").eval()(torch.zeros(1, 3, side, side, device="meta"))
    cells = side / found.shape[2]  # a border may be cut off, but of transformers
    stride = round(cells) if "encoder" in children else 2 ** round(math.log2(cells))
    half = (0.5, 0.5, 0.5)  # the two oldest change their input from torchvision's usual to this
    return Backbone(
        layers,
        channels=found.shape[1],
        stride=stride,
        mean=half if oldest else tuple(preset.mean),
        std=half if oldest else tuple(preset.std),
        source=name,
        inner=inner,
        left_out=("heads", "avgpool", "AuxLogits", "aux1", "aux2"),
    )


def _last_block(layers: nn.Module) -> int:
    """Return the position, from the end, after the last block but one of a sequence; 0 where there is none."""
    children = list(layers.children())
    # a single convolution, a norm or down-sampling has fewer modules
    large = [len(list(child.modules())) > 5 for child in children]
    blocks = [number for number, is_block in enumerate(large) if is_block]
    return blocks[-2] + 1 - len(children) if len(blocks) > 1 and len(children) > 2 else 0


def suitable_view(name: str, side: int) -> int:
    """Return the side of a square view nearest to ``side`` that a backbone takes, in whole cells of its map.

    Raises:
        ConfigError: No backbone has this name.
    """
    with torch.device("meta"):
        backbone = build_backbone(name)
    stride = backbone.stride
    for wanted in (max(1, round(side / stride)) * stride, 224, 256, 384, 448, 512, 518):
        if not reason_against_view(backbone, wanted):
            return wanted
    return side  # what is wrong with it is told when the network is made


def stages_to_freeze(name: str, stages: int) -> int:
    """Return how many stages of a backbone can be frozen, ``stages`` at most, see :meth:`Backbone.freeze`.

    Raises:
        ConfigError: No backbone has this name.
    """
    with torch.device("meta"):
        backbone = build_backbone(name)
    return min(stages, backbone.num_stages())


def build_backbone(name: str, *, weights: str | None = None) -> Backbone:
    """Return a backbone by name, with the weights it should start from.

    Args:
        name: A key of ``BACKBONES``, or ``timm/NAME``.
        weights: None for random, 'imagenet', or the path of a .pth or .safetensors file.

    Raises:
        ConfigError: No backbone has this name.
        WeightsError: The file is missing or does not fit; the parameters are listed.
    """
    if name.startswith("timm/"):
        own_name = name.removeprefix("timm/")
        file = packaged_weights(own_name) if weights == "imagenet" else None
        backbone = timm_backbone(own_name, pretrained=weights == "imagenet" and file is None)
        if file is not None:
            load_trunk(
                backbone.features, read_weights(str(file)), left_out=backbone.left_out, origin=str(file)
            )
        if weights == "imagenet":
            return backbone
    elif name.startswith("torchvision/"):
        backbone = torchvision_backbone(name.removeprefix("torchvision/"))
    elif name in BACKBONES:
        backbone = BACKBONES[name]()
    else:
        raise ConfigError(
            f"model.backbone: no backbone is called '{name}'{did_you_mean(name, BACKBONES)}; "
            f"expected one of {', '.join(BACKBONES)}, torchvision/NAME or timm/NAME"
        )
    if weights is not None:
        state = read_weights(weights, source=backbone.source)
        backbone.note = load_trunk(backbone.features, state, left_out=backbone.left_out, origin=weights)
    return backbone


@torch.no_grad()
def reason_against_view(backbone: Backbone, side: int, reader: nn.Module | None = None) -> str:
    """Return why a backbone cannot take a square view of a size, or a reader its features; '' if they can."""
    try:
        # on the meta device shapes are known and nothing is computed
        features = copy.deepcopy(backbone).to("meta").eval()(torch.zeros(1, 3, side, side, device="meta"))
        if reader is not None:
            reader(torch.zeros(features.shape))
    except NotImplementedError:
        return ""  # an operation whose shapes are not known without computing it
    except (RuntimeError, AssertionError, ValueError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""
