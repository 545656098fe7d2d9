"""The model card that goes with a network that is handed on: what it is for, how good, on what photos, and how to call it.

Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from racnn import __version__
from racnn.engine.checkpoint import Stored
from racnn.evaluation.report import answer_in_words
from racnn.sections import ModelSection

MOST_NAMED = 200  # classes
ONNX_CALL = """
Without this program, with onnxruntime alone (`photos` is uint8 [N, H, W, 3], RGB, upright, of any size):

```python
import numpy, onnxruntime, PIL.Image, PIL.ImageOps
session = onnxruntime.InferenceSession({file})
photo = PIL.ImageOps.exif_transpose(PIL.Image.open("photo.jpg")).convert("RGB")
photo = numpy.asarray(photo)[None]
probabilities, boxes = session.run(["probabilities"{boxes}], {{"photos": photo}})
```
"""


def model_card(
    stored: Stored,
    file: str,
    advice: Mapping[str, Any] | None = None,
    int8: Mapping[str, Any] | None = None,
) -> str:
    """Return a model card in Markdown.

    Args:
        stored: The checkpoint that is handed on.
        file: Name of the file that it is handed on as.
        advice: What ``racnn advise`` measured on the same photos, see :func:`racnn.engine.advise.read_advice`; None: nothing.
        int8: What whole numbers of 8 bits cost, as :func:`racnn.export.onnx_file.export_onnx` has it; None: it has none.
    """
    content, config = stored.content, stored.config
    looks = max(1, content.trained_scales)
    sizes = ", ".join(map(str, config.model.view_sizes[:looks]))
    names = [_plain(name) for name in content.class_names]
    more = f", and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    looking = (
        "looks once at a photo"
        if looks == 1
        else f"looks at a photo, decides where to look closer, zooms, and looks again, {looks} times in all"
    )
    shown = " ".join(file.encode("utf-8", "replace").decode().replace("`", "'").split())
    parts = [
        f"# {_plain(file)}",
        f"A network (`{config.model.family}`) that tells {len(names)} classes apart on photos. It {looking}: views of {sizes} px, "
        f"{_plain(config.model.backbone)}. It answers with probabilities of the classes and the boxes that it looked at.",
        "## How good it is",
        _figures(content.val_report, advice, config.model) + _lost(int8),
        "## What it was trained on",
        f"{len(content.train_names)} photos of the data set `{_plain(content.dataset)}`; {len(content.val_names)} others "
        f"were kept for validation. The network started from "
        f"{'random weights' if config.model.weights is None else f'the weights `{_plain(str(config.model.weights))}`'}. Phases: "
        f"{', '.join(phase.kind for phase in config.phases())}.{_provenance(content.provenance)}",
        "## Limits",
        "* It knows these classes alone. What is none of them is named like the class that it is most like, at times with a high "
        "probability.\n"
        "* Figures hold for photos like those it was trained on: on those of another camera, place or season they are lower.\n"
        "* Boxes show where it looked closer. They are no outlines of objects, and no proof of why it answers so.\n"
        f"* Photos that are not square are {'squashed to a square' if config.data.resize == 'squash' else 'cut to the square in their middle'}.",
        "## Licence",
        "The program that made it is under the Apache License 2.0. The weights come of the photos and of the weights that they "
        "started from, whose licences may ask for more: see those of the data set and of the backbone.",
        "## How to call it",
        f"```bash\nracnn predict {shlex.quote(shown)} PHOTO_OR_FOLDER --json\n```\n\n"
        f'```python\nimport racnn\nprint(racnn.load({shown!r}).predict("photo.jpg").top)\n```',
    ]
    if file.endswith(".onnx"):
        call = ONNX_CALL if looks > 1 else ONNX_CALL.replace("probabilities, boxes", "(probabilities,)")
        parts.append(call.strip().format(file=repr(shown), boxes=', "boxes"' if looks > 1 else ""))
    parts += ["## Classes", ", ".join(names) + more + "."]
    parts.append(f"Written by racnn {__version__}.")
    return "\n\n".join(parts) + "\n"


def _figures(report: Mapping[str, Any] | None, advice: Mapping[str, Any] | None, model: ModelSection) -> str:
    """Return a table of top-1 with intervals, the whole photo beside all looks, and what it rests on."""
    if report is None or "top1_interval" not in report:
        return "Not measured: the checkpoint brings no figures. `racnn evaluate` measures them."
    top1, intervals = report["top1"], report["top1_interval"]
    together = "fused" if "fused" in top1 else "mean"
    rows = [(together, "**all looks together**")]
    rows += [(key, answer_in_words(key, model)) for key in top1 if re.fullmatch(r"scale_[1-9]", key)]
    if len(rows) == 2:
        rows = rows[1:]
    lines = ["| answer | top-1 % | 95 % interval |", "|---|---|---|"]
    for key, words in rows:
        low, high = intervals[key]
        lines.append(f"| {words} | {100 * top1[key]:.1f} | {100 * low:.1f} to {100 * high:.1f} |")
    text = "\n".join(lines) + (
        f"\n\nOn {report['num_images']} validation photos, none of which it was trained on; they may have chosen between "
        f"epochs and fusions. Calibration error {100 * report['ece'][together if len(rows) > 1 else 'scale_1']:.1f} %."
    )
    if advice is None:
        return (
            text
            + " What costs as much, such as the whole photo at a larger size, was not measured (`racnn advise`)."
        )
    ways = [
        f"| {_plain(str(way['name']))} | {' '.join(map(str, way['view_sizes']))} | {way['multiplications'] / 1e9:.2f} | {100 * way['top1']:.1f} |"
        for way in advice["ways"]
    ]
    head = "| frozen, fitted on the same photos | px | billion multiplications | top-1 % |\n|---|---|---|---|"
    return f"{text}\n\nWhat costs as much (`racnn advise`):\n\n" + "\n".join([head, *ways])


def _lost(int8: Mapping[str, Any] | None) -> str:
    if int8 is None:
        return ""
    return (
        "\n\nThese are figures before its convolutions were put into whole numbers of 8 bits. After, "
        f"{100 * int8['top1']:.1f} % of {int8['photos']} validation photos are answered right, by the same program in float32 "
        f"{100 * int8['float32']:.1f} %; {100 * int8['agree']:.1f} % are answered alike. On a few photos a probability is off by up to "
        f"{int8['probability']:.2f}, a box by {int8['box']:.1f} pixels."
    )


def _provenance(starts: list[dict[str, Any]]) -> str:
    if not starts or not isinstance(starts[0].get("versions"), Mapping):
        return ""
    versions = starts[0]["versions"]
    return (
        " With "
        + ", ".join(f"{_plain(str(key))} {_plain(str(versions[key]))}" for key in list(versions)[:4])
        + "."
    )


def _plain(text: str) -> str:
    """Return a text that Markdown takes for text, in one line."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)
