"""Every backbone keeps the contract, and a weights file either fits or is refused with all its faults."""

from __future__ import annotations

import pickle
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FinishedRun
from safetensors.torch import save_file
from torch import Tensor

from racnn.compat import import_torchvision
from racnn.engine.predictor import export_trained, load
from racnn.errors import ConfigError, WeightsError
from racnn.models.backbone import BACKBONES, Backbone, build_backbone, tiny
from racnn.models.weights import load_trunk, read_weights

torchvision = import_torchvision()


def assert_contract(backbone: Backbone, *, side: int = 64, extra: int = 2) -> None:
    backbone.eval()
    width = side + extra * backbone.stride  # swapped axes fail; some timm networks take one size only
    view = torch.rand(1, 3, side, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = backbone(view)
    assert features.shape == (1, backbone.channels, side // backbone.stride, width // backbone.stride)
    assert torch.isfinite(features).all()
    assert features.std() > 0
    assert len(backbone.mean) == len(backbone.std) == 3
    assert all(0 < value < 1 for value in (*backbone.mean, *backbone.std))


def _full_state(backbone: Backbone) -> dict[str, Tensor]:
    """Return what torchvision would save: the trunk's parameters under ``features.`` and a classifier."""
    state = {f"features.{key}": value + 1 for key, value in backbone.features.state_dict().items()}
    return state | {"classifier.0.weight": torch.zeros(4, 2), "classifier.6.bias": torch.zeros(7)}


def _equal(first: Backbone, second: Backbone) -> bool:
    own, other = first.state_dict(), second.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


def assert_has(backbone: Backbone, state: dict[str, Tensor]) -> None:
    for key, value in backbone.features.state_dict().items():
        torch.testing.assert_close(value, state[f"features.{key}"], rtol=0, atol=0)


class TestFreeze:
    def test_fast_rcnns_two_stages_of_vgg16_end_before_conv3_1(self) -> None:
        backbone = build_backbone("vgg16")
        backbone.freeze(2)
        first = next(backbone.trainable().parameters())
        assert first.shape == (256, 128, 3, 3)

    def test_no_stage_leaves_all_trainable(self) -> None:
        backbone = tiny()
        backbone.freeze(0)
        assert len(list(backbone.trainable().parameters())) == len(list(backbone.parameters()))

    @pytest.mark.parametrize(
        ("backbone", "most"), [(tiny(), "at most 2"), (build_backbone("vgg11"), "at most 4")]
    )
    def test_more_stages_than_there_are_poolings_are_refused(self, backbone: Backbone, most: str) -> None:
        with pytest.raises(ConfigError, match=rf"model.frozen_stages: 5.*{most} can be frozen"):
            backbone.freeze(5)

    @pytest.mark.parametrize(
        "name",
        [
            "timm/tf_efficientnet_lite0",
            "timm/mobilenetv2_050",
            "timm/efficientnet_h_b5",  # whose first stage is the stem
            "vgg11",
            "tiny",
        ],
    )
    def test_what_is_frozen_and_the_rest_are_the_whole(self, name: str) -> None:
        torch.manual_seed(0)
        backbone = build_backbone(name).eval()
        view = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            features = backbone(view)
            for stages in range(3):
                backbone.freeze(stages)
                maps = backbone.frozen_part()(view)
                assert maps.shape[2] == 64 // 2**stages
                assert torch.equal(backbone.forward_rest(maps), features)
        frozen = {id(parameter) for parameter in backbone.frozen_part().parameters()}
        rest = {id(parameter) for parameter in backbone.trainable().parameters()}
        assert frozen
        assert frozen.isdisjoint(rest)
        assert frozen | rest == {id(parameter) for parameter in backbone.parameters()}

    def test_a_trunk_that_is_no_sequence_is_refused(self) -> None:
        class Trunk(torch.nn.Module):
            pass

        with pytest.raises(ConfigError, match="no stages of it"):
            Backbone(Trunk(), channels=1, stride=1).freeze(1)


class TestContract:
    @pytest.mark.parametrize("name", BACKBONES)
    def test_backbone_keeps_its_contract(self, name: str) -> None:
        assert_contract(build_backbone(name))

    @pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("vgg")])
    def test_vgg_trunk_has_the_parameters_of_torchvisions(self, name: str) -> None:
        with torch.device("meta"):
            theirs = getattr(torchvision.models, name)().features.state_dict()
            ours = build_backbone(name).features.state_dict()
        assert {key: value.shape for key, value in ours.items()} == {
            key: value.shape for key, value in theirs.items()
        }

    @pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
    def test_vgg_features_are_torchvisions_without_the_last_pool(self, name: str) -> None:
        ours = build_backbone(name).eval()
        with torch.device("meta"):
            theirs = getattr(torchvision.models, name)().features[:-1]
        theirs = theirs.to_empty(device="cpu").eval()
        theirs.load_state_dict(ours.features.state_dict())
        view = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(ours(view), theirs(view))

    def test_features_are_not_negative_and_of_a_fair_scale_at_the_start(self) -> None:
        backbone = build_backbone("vgg11").eval()
        view = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            features = backbone(view)
        assert features.min() == 0
        assert 0.05 < features.std() < 20

    def test_unknown_name_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"model\.backbone: no backbone is called 'vgg16bn'") as caught:
            build_backbone("vgg16bn")
        assert "did you mean 'vgg16_bn'?" in str(caught.value)
        assert all(name in str(caught.value) for name in BACKBONES)


class TestInner:
    """``forward_with_inner`` also yields what the last block is given."""

    view = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize(("name", "layers_after"), [("vgg16", 2), ("vgg11_bn", 3), ("tiny", 3)])
    @torch.no_grad()
    def test_of_a_sequence_it_is_the_last_relu_but_one(self, name: str, layers_after: int) -> None:
        backbone = build_backbone(name).eval()
        features, inner = backbone.forward_with_inner(self.view)
        assert torch.equal(features, backbone(self.view))
        assert torch.equal(inner, backbone.features[:-layers_after](self.view))
        assert (inner >= 0).all()

    @pytest.mark.parametrize(
        ("name", "block"),
        [
            ("tf_efficientnet_lite0", "blocks.5"),
            ("mobilenetv3_small_050", "blocks.4"),
            ("resnet18", "layer3"),
            ("convnext_atto", "stages.2"),
            ("xcit_nano_12_p16_224", "blocks.10"),  # tokens
            ("mambaout_femto", "stages.2"),  # channels last
        ],
    )
    @torch.no_grad()
    def test_of_a_timm_network_it_is_the_output_of_the_last_block_or_stage_but_one(
        self, name: str, block: str
    ) -> None:
        pytest.importorskip("timm")
        backbone = build_backbone(f"timm/{name}").eval()
        # a residual network's last block changes nothing at first
        for weight in backbone.parameters():
            weight += 0.01 * torch.rand(weight.shape)
        seen: list[Tensor] = []
        backbone.features.get_submodule(f"network.{block}").register_forward_hook(
            lambda _layer, _inputs, output: seen.append(output)
        )
        features, inner = backbone.forward_with_inner(self.view)
        assert torch.equal(features, backbone(self.view))
        assert not torch.equal(inner, features)
        height, width = inner.shape[2:]
        assert 2 * width == 3 * height
        if name.startswith("xcit"):
            assert torch.equal(inner.flatten(2), seen[0].transpose(1, 2))  # the class token comes later
        elif name.startswith("mambaout"):
            assert torch.equal(inner, seen[0].permute(0, 3, 1, 2))
        else:
            assert torch.equal(inner, seen[0])

    @torch.no_grad()
    def test_of_a_trunk_whose_last_block_is_not_known_it_is_the_map_itself(self) -> None:
        backbone = Backbone(tiny().features, channels=96, stride=4).eval()
        features, inner = backbone.forward_with_inner(self.view)
        assert torch.equal(features, backbone(self.view))
        assert torch.equal(inner, features)

    @pytest.mark.parametrize("name", ["tiny", "timm/test_resnet"])
    def test_no_hook_is_left_behind(self, name: str) -> None:
        if name.startswith("timm"):
            pytest.importorskip("timm")
        backbone = build_backbone(name)
        with pytest.raises(RuntimeError):
            backbone.forward_with_inner(torch.rand(1, 5, 8, 8))
        backbone.forward_with_inner(self.view)
        assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in backbone.modules())


class TestTimm:
    @pytest.mark.parametrize(
        ("name", "channels"),
        [("resnet18", 512), ("tf_efficientnet_lite0", 1280), ("mobilenetv3_small_050", 288)],
    )
    def test_timm_backbone_keeps_its_contract_and_loads_its_own_file(
        self, name: str, channels: int, tmp_path: Path
    ) -> None:
        timm = pytest.importorskip("timm")
        backbone = build_backbone(f"timm/{name}")
        assert (backbone.channels, backbone.stride) == (channels, 32)
        assert_contract(backbone)
        network = timm.create_model(name, pretrained=False)
        torch.save(network.state_dict(), tmp_path / "network.pth")
        load_trunk(
            backbone.features,
            read_weights(str(tmp_path / "network.pth")),
            left_out=backbone.left_out,
            origin="a file",
        )
        view = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = network.eval().forward_features(view)
            assert torch.equal(backbone.eval()(view), expected)

    @pytest.mark.parametrize(
        ("name", "layer", "side"),
        [
            ("mobilenetv3_small_050", "conv_head", 64),  # comes after the pooling
            ("convnext_atto", "head", 64),  # has a norm within
            ("vgg11", "pre_logits", 64),
            ("levit_conv_128s", "head_dist", 224),  # has two classifiers
            ("test_vit2", "fc_norm", 160),
        ],
    )
    def test_timm_backbone_has_no_weights_that_it_does_not_use(
        self, name: str, layer: str, side: int
    ) -> None:
        pytest.importorskip("timm")
        backbone = build_backbone(f"timm/{name}")
        assert layer in backbone.left_out
        backbone(torch.rand(2, 3, side, side)).sum().backward()
        assert [name for name, value in backbone.named_parameters() if value.grad is None] == []

    @pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto"])
    def test_timm_network_keeps_its_names_behind_network_but_for_its_head(self, name: str) -> None:
        timm = pytest.importorskip("timm")
        backbone = build_backbone(f"timm/{name}")
        theirs = {
            f"features.network.{key}"
            for key in timm.create_model(name).state_dict()
            if key.split(".")[0] not in backbone.left_out
        }
        assert backbone.state_dict().keys() == theirs

    def test_stride_is_that_of_views_of_whole_cells(self) -> None:
        pytest.importorskip("timm")
        backbone = build_backbone("timm/tf_efficientnet_b2")  # made for 260 px, of which it makes 9 cells
        assert backbone.stride == 32
        assert_contract(backbone)

    @pytest.mark.parametrize("name", ["pit_ti_224", "coat_tiny"])  # the class token alone; several maps
    def test_timm_network_without_a_map_is_refused(self, name: str) -> None:
        pytest.importorskip("timm")
        with pytest.raises(ConfigError, match=rf"timm/{name} cannot be .*no map of features"):
            build_backbone(f"timm/{name}")

    @pytest.mark.parametrize(("name", "prefix"), [("vit_tiny_patch16_224", 1), ("mixer_s16_224", 0)])
    @torch.no_grad()
    def test_tokens_become_a_map_without_those_that_belong_to_no_place(self, name: str, prefix: int) -> None:
        pytest.importorskip("timm")
        backbone = build_backbone(f"timm/{name}").eval()
        assert backbone.stride == 16
        view = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        features = backbone(view)
        tokens = backbone.features.get_submodule("network").forward_features(view)
        assert features.shape == (1, backbone.channels, 14, 14)
        assert torch.equal(features[0, :, 2, 5], tokens[0, prefix + 2 * 14 + 5])

    def test_network_of_tokens_keeps_the_contract(self) -> None:
        pytest.importorskip("timm")
        assert_contract(build_backbone("timm/xcit_nano_12_p16_224"))

    def test_unknown_timm_name_is_refused_with_the_nearest(self) -> None:
        pytest.importorskip("timm")
        with pytest.raises(
            ConfigError, match=r"timm has no network 'resnet1x8' \(did you mean 'resnet18'\?\)"
        ):
            build_backbone("timm/resnet1x8")

    def test_channels_last_timm_network_keeps_the_contract(self) -> None:
        pytest.importorskip("timm")
        assert_contract(build_backbone("timm/swin_tiny_patch4_window7_224"), side=224, extra=0)

    def test_failed_timm_download_is_a_weights_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        timm = pytest.importorskip("timm")

        def fail(*_args: Any, **_options: Any) -> None:
            raise OSError("no route to the hub")

        monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
        with pytest.raises(WeightsError, match=r"resnet18.*no route to the hub"):
            build_backbone("timm/resnet18", weights="imagenet")

    def test_missing_timm_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ConfigError, match="needs timm: pip install timm"):
            build_backbone("timm/resnet18")


class TestWeightFiles:
    @pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
    def test_torchvision_style_file_fits_and_its_classifier_is_passed_over(
        self, tmp_path: Path, wrap: str | None
    ) -> None:
        state = _full_state(tiny())
        torch.save(state if wrap is None else {wrap: state, "epoch": 3}, tmp_path / "w.pth")
        assert_has(build_backbone("tiny", weights=str(tmp_path / "w.pth")), state)

    def test_trunk_only_safetensors_in_half_precision_fits(self, tmp_path: Path) -> None:
        trunk = {
            key: value.half() if value.is_floating_point() else value
            for key, value in tiny().features.state_dict().items()
        }
        save_file(trunk, tmp_path / "w.safetensors")
        backbone = build_backbone("tiny", weights=str(tmp_path / "w.safetensors"))
        for key, value in backbone.features.state_dict().items():
            assert value.dtype == (torch.float32 if trunk[key].is_floating_point() else torch.int64)
            assert torch.equal(value, trunk[key].to(value.dtype))

    def test_file_without_batch_counters_fits(self, tmp_path: Path) -> None:
        state = {k: v for k, v in _full_state(tiny()).items() if not k.endswith("num_batches_tracked")}
        torch.save(state, tmp_path / "w.pth")
        loaded = build_backbone("tiny", weights=str(tmp_path / "w.pth")).features.state_dict()
        assert torch.equal(loaded["0.weight"], state["features.0.weight"])

    @pytest.mark.parametrize("exported", [False, True])
    def test_of_a_trained_racnn_the_first_look_is_taken(
        self, finished: FinishedRun, tmp_path: Path, exported: bool
    ) -> None:
        path = finished.folder / "best.pt"
        trained = load(path).model.backbones
        if exported:
            path = tmp_path / "mine.safetensors"
            export_trained(finished.folder / "best.pt", path)
        loaded = build_backbone("tiny", weights=str(path)).features.state_dict()
        for key, value in trained[0].features.state_dict().items():
            assert torch.equal(loaded[key], value)
        assert not torch.equal(loaded["0.weight"], trained[2].features.state_dict()["0.weight"])

    def test_every_fault_of_a_file_is_listed(self, tmp_path: Path) -> None:
        state = _full_state(tiny())
        del state["features.0.weight"], state["features.1.bias"]
        state["features.99.weight"] = torch.zeros(1)
        state["neck.bias"] = torch.zeros(1)
        state["features.3.weight"] = torch.zeros(2, 5)
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(WeightsError) as caught:
            build_backbone("tiny", weights=str(tmp_path / "w.pth"))
        message = str(caught.value)
        assert str(tmp_path / "w.pth") in message
        assert "missing: 0.weight, 1.bias" in message
        assert "unexpected: 99.weight, neck.bias" in message
        assert "other shapes: 3.weight (2, 5) instead of (16, 16, 3, 3)" in message

    def test_refused_file_changes_nothing(self) -> None:
        backbone = tiny()
        before = {key: value.clone() for key, value in backbone.features.state_dict().items()}
        state = _full_state(backbone)
        del state["features.7.weight"]
        with pytest.raises(WeightsError, match=r"missing: 7\.weight$"):
            load_trunk(backbone.features, state, left_out=backbone.left_out, origin="a file")
        assert all(torch.equal(value, before[key]) for key, value in backbone.features.state_dict().items())

    def test_long_lists_of_faults_are_cut(self) -> None:
        with pytest.raises(WeightsError, match=r"missing: .* and \d+ more; unexpected: fc1\.weight$"):
            load_trunk(tiny().features, {"fc1.weight": torch.zeros(1)}, origin="a file")

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"model\.weights: .*nowhere\.pth: no such file"):
            build_backbone("tiny", weights=str(tmp_path / "nowhere.pth"))

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02junk"])
    def test_junk_is_refused(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"junk{suffix}"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            build_backbone("tiny", weights=str(path))

    @pytest.mark.parametrize("content", [[1, 2, 3], {"state_dict": [1]}, {"a": 1}, torch.zeros(3)])
    def test_file_of_something_else_is_refused(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="expected a dictionary of tensors"):
            build_backbone("tiny", weights=str(tmp_path / "w.pth"))

    @pytest.mark.parametrize("zipped", [True, False])
    def test_evil_pickle_is_refused_and_does_not_run(self, tmp_path: Path, zipped: bool) -> None:
        marker = tmp_path / "ran"

        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.mkdir, (marker,)

        path = tmp_path / "evil.pth"
        if zipped:
            torch.save({"features.0.weight": Evil()}, path)
        else:
            path.write_bytes(pickle.dumps({"features.0.weight": Evil()}, protocol=2))
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            build_backbone("tiny", weights=str(path))
        assert not marker.exists()
        pickle.loads(pickle.dumps(Evil()))
        assert marker.exists(), "the file was harmless: the test proves nothing"


class TestImagenet:
    def test_imagenet_weights_are_torchvisions_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        state, asked = _full_state(build_backbone("vgg11")), []

        def serve(url: str, *_args: Any, **options: Any) -> dict[str, Tensor]:
            asked.append((url, options.get("check_hash")))
            return state

        monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", serve)
        assert_has(build_backbone("vgg11", weights="imagenet"), state)
        assert asked == [(torchvision.models.VGG11_Weights.IMAGENET1K_V1.url, True)]

    @pytest.mark.parametrize(
        "fault", [urllib.error.URLError("no route"), OSError("disk full"), RuntimeError("invalid hash")]
    )
    def test_failed_download_names_the_address_and_the_way_out(
        self, monkeypatch: pytest.MonkeyPatch, fault: Exception
    ) -> None:
        def fail(*_args: Any, **_options: Any) -> None:
            raise fault

        monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
        with pytest.raises(WeightsError, match=r"give its path as model\.weights") as caught:
            read_weights("imagenet", source="vgg16_bn")
        assert torchvision.models.VGG16_BN_Weights.IMAGENET1K_V1.url in str(caught.value)
        assert str(fault) in str(caught.value)

    def test_tiny_has_no_imagenet_weights(self) -> None:
        with pytest.raises(WeightsError, match="no 'imagenet' weights for this backbone"):
            build_backbone("tiny", weights="imagenet")


def test_no_weights_are_random() -> None:
    assert not _equal(build_backbone("tiny"), build_backbone("tiny"))


class TestTorchvision:
    @pytest.mark.parametrize(
        ("name", "channels", "stride", "inner"),
        [
            ("resnet18", 512, 32, (256, 14)),
            ("efficientnet_b0", 1280, 32, (192, 7)),
            ("convnext_tiny", 768, 32, (384, 14)),
            ("mobilenet_v3_small", 576, 32, (96, 7)),
            ("densenet121", 1024, 32, (1024, 14)),
            ("swin_t", 768, 32, (768, 7)),
            ("vit_b_16", 768, 16, (768, 14)),
            ("regnet_y_400mf", 440, 32, (440, 7)),
        ],
    )
    def test_any_classification_network_by_name(
        self, name: str, channels: int, stride: int, inner: tuple[int, int]
    ) -> None:
        with torch.device("meta"):
            backbone = build_backbone(f"torchvision/{name}").eval()
        features, before = backbone.forward_with_inner(torch.zeros(1, 3, 224, 224, device="meta"))
        assert (backbone.channels, backbone.stride) == (channels, stride)
        assert features.shape == (1, channels, 224 // stride, 224 // stride)
        assert before.shape[1:3] == inner

    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
    def test_what_it_makes_of_a_view_is_what_torchvision_pools(self, name: str, tmp_path: Path) -> None:
        torchvision = import_torchvision()
        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None).eval()
        torch.save(network.state_dict(), tmp_path / "whole.pth")  # the classifier too
        backbone = build_backbone(f"torchvision/{name}", weights=str(tmp_path / "whole.pth")).eval()
        assert not backbone.note
        pooled: list[Tensor] = []
        linear = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
        wanted = linear[0]  # mobilenet has two; in squeeze and excitation they are convolutions
        wanted.register_forward_pre_hook(lambda _, given: pooled.append(given[0]))
        view = torch.rand(1, 3, 96, 96)
        with torch.no_grad():
            network(view)
            features = backbone(view)
        torch.testing.assert_close(features.mean(dim=(2, 3)), pooled[0].flatten(1), rtol=1e-4, atol=1e-5)

    def test_a_transformer_takes_views_of_other_sizes(self) -> None:
        torch.manual_seed(0)
        backbone = build_backbone("torchvision/vit_b_16").eval()
        with torch.no_grad():
            assert backbone(torch.rand(1, 3, 96, 160)).shape == (1, 768, 6, 10)

    def test_unknown_name_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'resnet50'"):
            build_backbone("torchvision/resnet5O")
