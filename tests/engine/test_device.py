"""What the configuration asks of the hardware is what the network does."""

import os

import pytest
import torch

from racnn.config import load_config
from racnn.engine.device import determinism, prepare
from racnn.models import RACNN
from racnn.models.backbone import Backbone

CPU = torch.device("cpu")


def network():
    torch.manual_seed(0)
    return RACNN(num_classes=3, backbone="tiny", view_sizes=(32, 16)).eval()


def prepared(*settings):
    model = network()
    prepare(model, load_config(None, list(settings)), CPU)
    return model


@pytest.mark.parametrize("asked", [True, False])
def test_compiling_is_done_for_every_backbone_or_none_and_never_in_parts(asked, monkeypatch):
    calls = []
    monkeypatch.setattr(Backbone, "compile", lambda self, **options: calls.append(options))
    prepared(f"run.compile={str(asked).lower()}")
    assert calls == [{"fullgraph": True, "dynamic": False}] * (2 if asked else 0)


@pytest.mark.slow
def test_a_compiled_network_answers_as_a_plain_one_and_keeps_its_names():
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    plain, compiled = prepared("run.precision=fp32"), prepared("run.precision=fp32", "run.compile=true")
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    with torch.no_grad():
        for one, other in zip(plain(images).logits, compiled(images).logits, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert compiled.backbones[0]._compiled_call_impl is not None


def test_what_cannot_be_compiled_is_an_error_and_not_slow():
    class Unruly(torch.nn.Module):
        def forward(self, view):
            print("a break in the graph")
            return view

    model = network()
    model.backbones[0].features = Unruly()
    prepare(model, load_config(None, ["run.compile=true"]), CPU)
    with pytest.raises(Exception, match=r"(?s)graph break|Unsupported|unsupported"):
        model(torch.zeros(1, 3, 32, 32), num_scales=1)


@pytest.mark.parametrize("asked", [True, False])
def test_activations_are_kept_or_computed_again_as_asked(asked):
    model = prepared(f"run.activation_checkpointing={str(asked).lower()}")
    assert [backbone.recompute for backbone in model.backbones] == [asked, asked]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_features(precision, dtype):
    model = prepared(f"run.precision={precision}")
    assert model(torch.zeros(1, 3, 32, 32)).scales[0].features.dtype == dtype


@pytest.mark.parametrize("asked", [True, False])
def test_memory_layout_is_the_one_asked_for(asked):
    model = prepared(f"run.channels_last={str(asked).lower()}")
    weight = model.backbones[0].features[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is asked


class TestDeterminism:
    @pytest.mark.parametrize(("device", "only_warns"), [("cpu", False), ("cuda", True)])
    def test_holds_inside_and_leaves_no_trace(self, device, only_warns, monkeypatch):
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        with determinism(True, torch.device(device)):
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled() is only_warns
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.are_deterministic_algorithms_enabled()
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")

    @pytest.mark.parametrize("wanted", [True, False])
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_cudnn_looks_for_the_fastest_where_bits_need_not_repeat(self, device, wanted):
        assert not torch.backends.cudnn.benchmark
        with determinism(wanted, torch.device(device)):
            assert torch.are_deterministic_algorithms_enabled() is wanted
            assert torch.backends.cudnn.benchmark is (device == "cuda" and not wanted)
        assert not torch.backends.cudnn.benchmark
