"""Activations that are computed again give the same gradients and statistics, from less memory."""

from contextlib import nullcontext

import pytest
import torch

from racnn.models.backbone import build_backbone


def trained_once(name, *, recompute, measure=False):
    """Return features, gradients, statistics and the bytes kept for the backward pass of one pass in training mode."""
    torch.manual_seed(0)
    backbone = build_backbone(name).train()
    if recompute:
        backbone.save_memory()
    view = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
    own = {p.data_ptr() for p in backbone.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks if measure else nullcontext():  # with hooks torch does not see what was changed in place
        features = backbone(view)
    forward_bytes = sum(kept.values())
    features.square().mean().backward()
    gradients = {name: p.grad for name, p in backbone.named_parameters()} | {"view": view.grad}
    return features, gradients, dict(backbone.named_buffers()), forward_bytes


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "vgg11_bn", "tiny", "timm/resnet18"])
def test_the_same_comes_out(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    (features, gradients, buffers, _), (again, others, more, _) = (
        trained_once(name, recompute=recompute) for recompute in (False, True)
    )
    assert torch.equal(features, again)
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-5, atol=1e-9)
    assert all(torch.equal(more[key], value) for key, value in buffers.items())


def test_less_is_kept():
    plain, saving = (
        trained_once("vgg11", recompute=recompute, measure=True)[3] for recompute in (False, True)
    )
    assert saving < 0.5 * plain


def test_nothing_is_computed_again_where_no_gradient_is_asked():
    backbone = build_backbone("tiny").eval()
    backbone.save_memory()
    calls = []
    backbone.features[0].register_forward_hook(lambda *_: calls.append(0))
    with torch.no_grad():
        backbone(torch.rand(1, 3, 32, 32))
    assert len(calls) == 1
