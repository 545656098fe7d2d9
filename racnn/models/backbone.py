"""Backbones: networks from a view to a feature map, under one small contract."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from racnn.compat import import_torchvision
from racnn.errors import ConfigError, WeightsError, did_you_mean
from racnn.models.recompute import run_in_segments
from racnn.models.weights import load_trunk, read_weights

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
        self.frozen_layers = 0
        self.recompute = False

    def freeze(self, stages: int) -> None:
        """Keep the first stages, each up to and with a pooling layer, as they were loaded.

        Their features are generic, and a training step saves their backward pass and most of the memory. Fast R-CNN
        (Girshick 2015, section 4.5) trains VGG-16 from conv3_1 up, which is ``stages=2``.

        Raises:
            ConfigError: The trunk has no so many poolings, or is no plain sequence of layers.
        """
        layers = list(self.features) if isinstance(self.features, nn.Sequential) else []
        pools = [i + 1 for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        if stages > len(pools):
            most = f"at most {len(pools)} can be frozen" if pools else "no stages of it can be frozen"
            raise ConfigError(f"model.frozen_stages: {stages}, but in this backbone {most}")
        self.frozen_layers = ([0, *pools])[stages]
        for layer in layers[: self.frozen_layers]:
            layer.requires_grad_(False)

    def trainable(self) -> nn.Module:
        """Return the part of the trunk that training may change."""
        if not self.frozen_layers:
            return self.features
        assert isinstance(self.features, nn.Sequential)
        return self.features[self.frozen_layers :]

    def forward(self, view: Tensor) -> Tensor:
        """Return features [B, channels, h, w] of a normalised view [B, 3, H, W]."""
        if self.recompute:
            return run_in_segments(self.features, view)
        features: Tensor = self.features(view)
        return features

    def forward_with_inner(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of a normalised view and those that the last block is given: [B, channels, h, w], [B, C, h', w'].

        The last block is the most specialised one: what it makes of a photo tells the class, what it is given still tells
        the object from its surroundings. Of a timm network it is the last block or stage, and its map may be the finer one.
        Where no such block is known (``inner`` is 0), both are the features. For reading boxes, without a gradient.
        """
        if isinstance(self.features, _TimmTrunk):
            return self.features.forward_with_inner(view)
        if not self.inner:
            features: Tensor = self.features(view)
            return features, features
        assert isinstance(self.features, nn.Sequential)
        inner: Tensor = self.features[: self.inner](view)
        return self.features[self.inner :](inner), inner

    def save_memory(self) -> None:
        """Keep few activations and compute the others again in the backward pass, see :mod:`racnn.models.recompute`."""
        self.recompute = True


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


VGG_NAMES = ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")
BACKBONES: dict[str, Callable[[], Backbone]] = {
    "tiny": tiny,
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
        raise ConfigError(
            f"model.backbone: timm/{name} needs the timm extra: pip install 'racnn[timm]'"
        ) from None
    if name.split(".")[0] not in timm.list_models():
        raise ConfigError(
            f"model.backbone: timm has no network '{name}'{did_you_mean(name, timm.list_models())}"
        )
    try:
        network: Any = timm.create_model(name, pretrained=pretrained, num_classes=0)
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
        backbone = timm_backbone(name.removeprefix("timm/"), pretrained=weights == "imagenet")
        if weights == "imagenet":
            return backbone
    elif name in BACKBONES:
        backbone = BACKBONES[name]()
    else:
        raise ConfigError(
            f"model.backbone: no backbone is called '{name}'{did_you_mean(name, BACKBONES)}; "
            f"expected one of {', '.join(BACKBONES)} or timm/NAME"
        )
    if weights is not None:
        state = read_weights(weights, source=backbone.source)
        load_trunk(backbone.features, state, left_out=backbone.left_out, origin=weights)
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
