"""What the graph does in fewer products than the network is what the network does."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="needs the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
from racnn.export.network import _shrunk, _whole_factor, build_onnx  # noqa: E402
from racnn.models import RACNN  # noqa: E402
from racnn.ops.crop import zoom  # noqa: E402
from racnn.ops.regions import whole  # noqa: E402


@pytest.mark.parametrize("factor", [2, 3, 4, 7])
def test_a_whole_image_shrinks_as_by_the_zoom(factor):
    image = torch.rand(2, 3, 8 * factor, 8 * factor, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_shrunk(image, factor), zoom(image, whole(2), (8, 8)))


@pytest.mark.parametrize(
    ("source", "options", "factor"),
    [
        (64, {}, 2),
        (96, {}, 3),
        (80, {}, None),
        (32, {}, None),
        (16, {}, None),
        (64, {"antialias": False}, None),
    ],
)
def test_where_that_is_done(source, options, factor):
    model = RACNN(num_classes=2, backbone="tiny", view_sizes=(32, 32), **options)
    assert _whole_factor(model, source) == factor


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "crop"},
        {"sampler": "gaussian", "pooling": "attention"},
        {"sampler": "zoom", "zoom_from": "parent"},
    ],
    ids=str,
)
def test_every_way_of_looking_is_exported(options):
    torch.manual_seed(0)
    model = RACNN(num_classes=4, backbone="tiny", view_sizes=(32, 32), mask=False, **options).eval()
    for module in [apn.out for apn in model.apns] + [each.score for each in model.attentions]:
        torch.nn.init.normal_(module.weight)
    graph = build_onnx(model, source_size=48, resize="squash", scales=2, fused=True, pools=None, metadata={})
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    photos = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    names = ["source", "probabilities", "view_2", "why_2"]
    source, probabilities, view, why = session.run(names, {"photos": photos})
    with torch.no_grad():
        output = model(torch.from_numpy(source))
    torch.testing.assert_close(
        torch.from_numpy(probabilities), output.fused.softmax(dim=1), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(torch.from_numpy(view), model.to_pixels(output.views[1]), rtol=0, atol=1e-4)
    first, second = output.fused.topk(2, dim=1).indices.unbind(dim=1)
    expected = model.difference(2, output.scales[1].weighed, first, second)
    torch.testing.assert_close(torch.from_numpy(why), expected, rtol=1e-3, atol=1e-5)
