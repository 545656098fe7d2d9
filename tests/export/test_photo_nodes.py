"""The nodes before and after an exported network do what SourceTransform does."""

import numpy as np
import pytest
import torch
from PIL import Image

from racnn.data.transforms import SourceTransform
from racnn.ops.regions import to_boxes_xyxy

pytest.importorskip("onnx", reason="needs the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
from racnn.export.graph import Graph, Port  # noqa: E402
from racnn.export.photo import axes_of, boxes_in_photo, sources_of  # noqa: E402

SHAPES = [
    *[(64, 64), (50, 70), (300, 200), (30, 500), (1, 1), (2, 90), (65, 63), (128, 96), (333, 517)],
    *[(72, 128), (128, 128), (192, 256), (384, 384), (128, 192)],  # whole blocks, and means halfway
    *[(640, 64), (1100, 200)],  # few pixels to add up, and many
]


@pytest.fixture(scope="module", params=["squash", "crop"])
def both(request):
    """Return the nodes as a session, and the transform."""
    graph = Graph()
    rows, columns = axes_of(graph, "photos", 64, request.param)
    sources = sources_of(graph, "photos", rows, columns, 64)
    tx, ty, tl = graph.node("Split", ["regions", graph.ints(1, 1, 1)], 3, axis=1)
    boxes = boxes_in_photo(graph, [tx, ty], [tl, tl], rows, columns, 64)
    model = graph.model(
        [
            Port("photos", "photos", "uint8", ["n", "h", "w", 3]),
            Port("regions", "regions", "float32", ["k", 3]),
        ],
        [Port(sources, "sources", "float32", ["n", 3, 64, 64]), Port(boxes, "boxes", "float32", ["k", 4])],
        {},
        {},
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session, SourceTransform(64, request.param)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_photos_become_the_same_sources(both, shape):
    session, transform = both
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    smooth = np.array(Image.fromarray(noise[::3, ::3]).resize(shape[::-1], Image.Resampling.BICUBIC))
    regions = np.zeros((1, 3), np.float32)
    found = session.run(["sources"], {"photos": np.stack([noise, smooth]), "regions": regions})[0]
    for ours, photo in zip(found, (noise, smooth), strict=True):
        off = np.abs(ours - transform.source(photo, shape).numpy().astype(np.float32))
        assert off.max() == 0.0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_boxes_lie_where_they_did(both, shape):
    session, transform = both
    regions = torch.tensor([[0.0, 0.0, 1.0], [0.2, -0.3, 0.5], [-0.9, 0.95, 0.05]])
    given = {"photos": np.zeros((1, *shape, 3), np.uint8), "regions": regions.numpy()}
    found = session.run(["boxes"], given)[0]
    wanted = [transform.to_photo(box.tolist(), shape) for box in to_boxes_xyxy(regions, (64, 64))]
    np.testing.assert_allclose(found, wanted, atol=1e-3)
