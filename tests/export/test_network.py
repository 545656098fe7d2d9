"""What the graph does in fewer products than the network is what the network does."""

import pytest
import torch

pytest.importorskip("onnx", reason="needs the extra export")
pytest.importorskip("onnxruntime", reason="needs the extra export")
from racnn.export.network import _shrunk, _whole_factor
from racnn.models import RACNN
from racnn.ops.crop import zoom
from racnn.ops.regions import whole


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
