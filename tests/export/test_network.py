"""What the graph does in fewer products than the network is what the network does."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="needs the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
from racnn.export.network import _shrunk, _whole_factor, build_onnx  # noqa: E402
from racnn.models import RACNN  # noqa: E402
from racnn.models.early_exit import EarlyExit, look_until_confident  # noqa: E402
from racnn.ops.crop import zoom  # noqa: E402
from racnn.ops.regions import to_boxes_xyxy, whole  # noqa: E402


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
        {"sampler": "crop", "gates": "cbam"},
        {"sampler": "gaussian", "pooling": "attention"},
        {"sampler": "zoom", "zoom_from": "parent"},
        {"sampler": "affine", "regions": "parallel", "gates": "sca"},
        {"apn": "response", "regions": "parallel", "sampler": "affine", "level_heads": ("genus",)},
    ],
    ids=str,
)
def test_every_way_of_looking_is_exported(options):
    torch.manual_seed(0)
    looks = 4 if "level_heads" in options else 3 if "regions" in options else 2
    model = RACNN(num_classes=4, backbone="tiny", view_sizes=(32,) * looks, mask=False, **options).eval()
    learnt = [apn.out for apn in model.apns if hasattr(apn, "out")]
    learnt += [each.score for each in model.attentions]
    learnt += [
        part
        for backbone in model.backbones
        for part in backbone.gates.modules()
        if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)
    ]
    for module in learnt:
        torch.nn.init.normal_(module.weight, std=0.1)
    if options.get("apn") == "response":
        torch.nn.init.normal_(model.apns[0].direction)
        model.take_levels(("species", "genus"), (tuple("abcd"), tuple("xxyy")))
        model.levels.trust.fill_(0.5)
    pools = [[1.0 / depth] * depth for depth in range(1, looks)]
    given = {"source_size": 48, "resize": "squash", "scales": looks, "fused": True, "metadata": {}}
    graph = build_onnx(model, pools=pools, **given)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    photos = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
    last = f"view_{looks}", f"why_{looks}"
    source, probabilities, boxes, view, why = session.run(
        ["source", "probabilities", "boxes", *last], {"photos": photos}
    )
    with torch.no_grad():
        output = model(torch.from_numpy(source))
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(torch.from_numpy(probabilities), output.fused.softmax(dim=1), **close)
    torch.testing.assert_close(torch.from_numpy(view), model.to_pixels(output.views[-1]), **close)
    expected = torch.stack([to_boxes_xyxy(region, (48, 48)) for region in output.regions[1:]], dim=1)
    torch.testing.assert_close(torch.from_numpy(boxes), expected, rtol=0, atol=1e-2)
    first, second = output.fused.topk(2, dim=1).indices.unbind(dim=1)
    expected = model.difference(looks, output.scales[-1].weighed, first, second)
    torch.testing.assert_close(torch.from_numpy(why), expected, rtol=1e-3, atol=1e-5)

    confidence = output.logits[0].softmax(dim=1).amax(dim=1).sort().values
    between = float(confidence[2] + confidence[3]) / 2  # two of the five stop after the first look
    early = EarlyExit("any", between, tuple(map(tuple, pools)), (1.0,) * looks, later=2.0)
    with torch.no_grad():
        stopped = look_until_confident(model, torch.from_numpy(source), early, scales=looks, fused=True)
    assert [len(index) for index, *_ in stopped] == [2, 3]
    stop = np.array([between, *[2.0] * (looks - 2)], np.float32)
    probabilities, depth = session.run(["probabilities", "looks"], {"photos": photos, "stop": stop})
    for index, answers, regions in stopped:
        torch.testing.assert_close(torch.from_numpy(probabilities)[index], answers.exp(), **close)
        assert set(depth[index.numpy()]) == {len(regions)}
