"""``racnn advise``: what looking closer is worth on some photos, measured with frozen looks beside what costs as much.

Everything is fitted on the training photos (:mod:`racnn.models.racnn.looks`), which are answered out of fold, and the validation
photos report. A cost is all multiplications that an answer takes, in convolutions and matrix products, proposals included.

Controls see no more than a network that does not look where it matters: the whole photo at other sizes, the whole photo
three times (plain, mirrored, shifted), three looks at the middle, and three where the looks of another photo went; answers of
several views are weighed in the same way.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from racnn.config import Config
from racnn.data import Data, build_data, eval_loader
from racnn.engine.device import prepare
from racnn.engine.evaluator import predict
from racnn.errors import ConfigError, DataError
from racnn.evaluation.chart import Dot, cost_chart
from racnn.evaluation.metrics import fraction, paired_difference, wilson_interval
from racnn.evaluation.table import table
from racnn.models import build_model
from racnn.models.backbone import suitable_view
from racnn.models.calibration import pool_weights
from racnn.models.cost import multiplications
from racnn.models.early_exit import pooled_answer
from racnn.models.parts import FEW, read_rows
from racnn.models.racnn.heads import fit_head
from racnn.models.racnn.looks import Looks
from racnn.models.racnn.model import RACNN
from racnn.ops.regions import whole

LOOK_SIZES = (0.5, 0.7, 1.0)  # of the configuration's view, three looks each
WHOLE_SIZES = (1.2, 1.7)  # of it, whole photos alone; those of LOOK_SIZES come with the looks
AT_THE_MIDDLE = "three looks at the middle"
ELSEWHERE = "three looks where other photos' went"
OF_PLACE = (AT_THE_MIDDLE, ELSEWHERE)  # controls that also look closer: no more than where is in question
MIDDLE = ((0.0, 0.0, 1.0), (0.0, 0.0, 0.7), (0.0, 0.0, 0.5))
SHIFTED = (0.05, 0.05, 0.95)
TIMED = FEW  # photos that the seconds are measured on
WORTH = 0.01  # less than this is no reason to look several times
COLORS = {"whole": "#666666", "looks": "#c0392b", "control": "#2e86c1"}
LEGEND = {"whole": "whole photo", "looks": "looking closer", "control": "as many other views"}


@dataclass
class Way:
    """One way to answer, and what it came to.

    Attributes:
        name: In words.
        kind: 'whole', 'looks' or 'control'.
        view_sizes: Side in pixels of each view.
        multiplications: Per photo.
        seconds: Per photo, measured here, reading the photo apart.
        right_out_of_fold: [M], whether each training photo was answered right by heads that had not seen it.
        right: [N], whether each validation photo was.
    """

    name: str
    kind: str
    view_sizes: tuple[int, ...]
    multiplications: float
    seconds: float
    right_out_of_fold: Tensor = field(repr=False)
    right: Tensor = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it in plain types, with ``top1`` of the validation photos and its interval."""
        return {
            "name": self.name,
            "kind": self.kind,
            "view_sizes": list(self.view_sizes),
            "multiplications": self.multiplications,
            "seconds": self.seconds,
            "out_of_fold": fraction(self.right_out_of_fold),
            "top1": fraction(self.right),
            "top1_interval": wilson_interval(int(self.right.sum()), len(self.right)),
        }


def advise(config: Config, *, device: torch.device, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Return what looking closer is worth on the photos of a configuration of the ``quick`` recipe, in plain types.

    Args:
        config: Its ``model.view_sizes[0]`` is the largest view that is looked at closely.
        device: Where to.
        say: Is told how far it is.

    Returns:
        ``ways``, see :meth:`Way.to_dict`, and of these the best ``looks`` and the best whole photo of no more cost, ``plain``;
        ``verdict``, 'pays', 'does not pay' or 'cannot tell'; ``against``, the paired differences that it is made of, with their
        95 % intervals; ``num_images``, ``num_train`` and ``num_classes``.

    Raises:
        DataError: No class has two training photos, so that nothing can be answered out of fold.
    """
    data = build_data(config.data, seed=config.run.seed)
    if [phase.kind for phase in config.phases()] != ["looks"]:
        raise ConfigError("schedule: advise fits looks on a frozen trunk, and takes no other schedule")
    labels = [record.label for record in data.splits["train"].records]
    if len(set(labels)) == len(labels):
        raise DataError(
            "advise: every class has one training photo, so that none can be answered by a head that has not seen it"
        )
    study = _Study(config, data, device)
    ways: list[Way] = []
    base = config.model.view_sizes[0]
    sides = [suitable_view(config.model.backbone, round(base * factor)) for factor in LOOK_SIZES]
    for side in sorted(set(sides)):
        say(f"three looks at {side} px")
        ways += study.looks(side)
    largest = max(sides)
    whole_sides = {suitable_view(config.model.backbone, round(base * factor)) for factor in WHOLE_SIZES}
    views = [_View(side) for side in sorted(whole_sides - set(sides))]
    elsewhere = [_View(largest), _View(largest, look=2), _View(largest, look=3)]
    middle = [_View(largest, region) for region in MIDDLE]
    wholes = [_View(largest), _View(largest, mirrored=True), _View(largest, SHIFTED)]
    say("whole photos at other sizes, and views of equal cost that look nowhere in particular")
    read = study.read_views([*views, *middle, *wholes, *elsewhere])
    ways += [study.fixed("whole", [view], read) for view in views]
    ways.append(study.fixed(AT_THE_MIDDLE, middle, read))
    ways.append(study.fixed(ELSEWHERE, elsewhere, read))
    ways.append(study.fixed("three whole views", wholes, read))
    return _report(ways, data)


@dataclass(frozen=True)
class _View:
    """A view that no photo has a say in: the same of every one, or where another photo's ``look`` went, counted from 1."""

    side: int
    region: tuple[float, float, float] = (0.0, 0.0, 1.0)
    mirrored: bool = False
    look: int = 1


class _Study:
    """A frozen trunk, and the photos."""

    def __init__(self, config: Config, data: Data, device: torch.device) -> None:
        self.config = config
        self.data = data
        self.device = device
        (self.phase,) = [phase for phase in config.phases() if isinstance(phase, Looks)]
        torch.manual_seed(config.run.seed)
        self.model: RACNN = build_model(config.model, num_classes=len(data.class_names), weights=True)
        prepare(self.model, config, device, training=False)
        self.model.eval()
        self.went: dict[
            str, list[Tensor]
        ] = {}  # where the looks at the photos of each split went, [N, 3] each

    def num_photos(self, split: str) -> int:
        """Return how many photos a split has."""
        return len(self.data.splits[split])

    def looks(self, side: int) -> list[Way]:
        """Return what one, two and three looks at views of a size come to, fitted as ``racnn train`` does."""
        sizes = (side, side, side)
        section = self.config.model.model_copy(update={"view_sizes": sizes, "bounds": (), "level_heads": ()})
        model: RACNN = build_model(section, num_classes=self.model.num_classes, weights=False)
        model.backbones = self.model.backbones
        prepare(model, self.config, self.device, training=False)
        context: Any = _Context(self, model.eval())
        self.phase.resolved(len(sizes)).fit(context)
        found = predict(model, self._batches("val"), device=self.device)
        self.went = {"train": context.regions, "val": found.regions}
        ways = []
        costs, seconds = self._cost(model)
        for depth, name in enumerate(("whole", "two looks", "three looks"), start=1):
            logits, known = found.logits[:depth], context.answers[:depth]
            weights = pool_weights(known, context.labels)
            ways.append(
                Way(
                    name,
                    "looks" if depth > 1 else "whole",
                    sizes[:depth],
                    costs[depth - 1],
                    seconds[depth - 1],
                    pooled_answer(known, weights).argmax(dim=1) == context.labels,
                    pooled_answer(logits, weights).argmax(dim=1) == found.labels,
                )
            )
        return ways

    def fixed(self, name: str, views: Sequence[_View], read: dict[str, dict[_View | str, Tensor]]) -> Way:
        """Return what views that are the same of every photo come to, each with a head of its own."""
        train, val = read["train"], read["val"]
        heads = [fit_head(train[view], train["labels"], self.model.num_classes) for view in views]
        known = torch.stack([head.answered for head in heads]).all(dim=0)
        labels = train["labels"][known]
        answers = [head.answers[known] for head in heads]
        weights = pool_weights(answers, labels)
        logits = [val[view] @ head.weight.T + head.bias for view, head in zip(views, heads, strict=True)]
        multiplications, seconds = self._cost_of_views(views)
        kind = "whole" if len(views) == 1 else "control"
        right = pooled_answer(logits, weights).argmax(dim=1) == val["labels"]
        out_of_fold = pooled_answer(answers, weights).argmax(dim=1) == labels
        sizes = tuple(view.side for view in views)
        return Way(name, kind, sizes, multiplications, seconds, out_of_fold, right)

    @torch.no_grad()
    def read_views(self, views: Sequence[_View]) -> dict[str, dict[_View | str, Tensor]]:
        """Return the descriptors [N, D] of the photos of each split by view, and their ``labels``."""
        wanted = list(dict.fromkeys(views))

        def read(split: str, batch: dict[str, Tensor]) -> dict[_View | str, Tensor]:
            source = self.model.normalise(batch["image"].to(self.device))
            found: dict[_View | str, Tensor] = {
                view: self.model.describe(self._features(source, view, split, batch["index"])).cpu()
                for view in wanted
            }
            return found | {"labels": batch["label"]}

        return {split: self._rows(split, functools.partial(read, split)) for split in ("train", "val")}

    def _features(self, source: Tensor, view: _View, split: str, index: Tensor) -> Tensor:
        """Return the features of a view of photos [B, 3, H, W], normalised, that stand at ``index`` [B] in their split."""
        if view.look > 1:
            # in most data sets photos are in the order of their classes, so that half of them on is another class
            went = self.went[split][view.look - 1]
            region = went[(index - len(went) // 2) % len(went)].to(source.device)
        elif view.region == MIDDLE[0]:
            region = whole(len(source), device=source.device)
        else:
            region = torch.tensor([view.region], device=source.device).expand(len(source), -1)
        crop = self.model.sample(source, region, (view.side, view.side), antialias=self.model.antialias)
        return self.model.extract(1, crop.flip(3) if view.mirrored else crop)

    def _rows(self, split: str, read: Callable[[dict[str, Tensor]], dict[Any, Tensor]]) -> dict[Any, Tensor]:
        batches = tqdm(self._batches(split), desc=split, leave=False, disable=None)
        return read_rows(read, batches, device=self.device)

    def _batches(self, split: str, most: int | None = None) -> Any:
        return eval_loader(self.data.splits[split], self.config.data, most=most)

    @functools.cached_property
    def _some_photos(self) -> Tensor:
        """Return validation photos [TIMED or fewer, 3, H, W] to measure costs with."""
        photos = self.data.splits["val"].without_augmentation()
        num = min(TIMED, len(photos))
        return torch.stack([photos[(0, i)]["image"] for i in range(num)]).to(self.device)

    @torch.no_grad()
    def _cost(self, model: RACNN) -> tuple[list[float], list[float]]:
        """Return the multiplications and seconds per photo of one look, two and so on."""
        images = self._some_photos
        runs = [functools.partial(model, num_scales=depth) for depth in range(1, model.num_scales + 1)]
        costs = [multiplications(functools.partial(run, images[:1])) for run in runs]
        return costs, [self._seconds(run, images) for run in runs]

    @torch.no_grad()
    def _cost_of_views(self, views: Sequence[_View]) -> tuple[float, float]:
        def run(images: Tensor) -> None:
            source = self.model.normalise(images)
            for view in views:
                self._features(source, view, "val", torch.arange(len(images)))

        images = self._some_photos
        return multiplications(functools.partial(run, images[:1])), self._seconds(run, images)

    def _seconds(self, run: Callable[[Tensor], Any], images: Tensor) -> float:
        times = []
        for _ in range(2):
            start = time.perf_counter()
            run(images)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append((time.perf_counter() - start) / len(images))
        return min(times)


class _Context:
    """What a looks phase asks for, see :class:`racnn.models.phase.PhaseContext`; nothing is written."""

    def __init__(self, study: _Study, model: RACNN) -> None:
        self.study = study
        self.model = model
        self.answers: list[Tensor] = []
        self.regions: list[Tensor] = [whole(study.num_photos("train"))]  # where each look goes, in training
        self.labels = torch.zeros(0)

    def num_photos(self, split: str) -> int:
        """Return how many photos a split has."""
        return self.study.num_photos(split)

    def read(
        self, what: str, split: str, call: Callable[..., Any], *, most: int | None = None, **settings: Any
    ) -> Any:
        """Return what a call finds in the photos of a split."""
        if settings.get("scale", 1) > len(self.regions):
            self.regions.append(settings["region"])
        batches = tqdm(self.study._batches(split, most), desc=what, leave=False, disable=None)
        return call(self.model, batches, device=self.study.device, **settings)

    def remember(
        self, name: str, depends_on: Sequence[Tensor | None], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return what ``make`` returns."""
        return make()

    def choose_early_exit(
        self, logits: Sequence[Tensor], fused: Tensor, labels: Tensor, *, tolerance: float
    ) -> None:
        """Keep the answers out of fold."""
        self.answers, self.labels = list(logits), labels

    def log(self, text: str) -> None:
        """Print nothing: the table comes at the end."""


def _report(ways: list[Way], data: Data) -> dict[str, Any]:
    """Return the ways and the verdict.

    The best looks are compared with the best whole photo of no more cost, both chosen for the validation photos by the
    training photos and the other way round, so that no photo has a say in what it is judged by; and three looks with three
    views of the same size that look nowhere in particular.
    """
    looks, plain = _chosen(ways, "all")
    controls = [way for way in ways if way.kind == "control"]
    pairs = {"whole photo": [_chosen(ways, "right"), _chosen(ways, "right_out_of_fold")]}
    for control in controls:  # beside as many looks at as large views
        (alike,) = (way for way in ways if way.kind == "looks" and way.view_sizes == control.view_sizes)
        pairs[control.name] = [(alike, control)] * 2
    against = {}
    for name, (for_training, for_validation) in pairs.items():
        ours, other = (
            torch.cat([for_training[i].right_out_of_fold, for_validation[i].right]) for i in range(2)
        )
        mean, low, high = paired_difference(ours, other)
        against[name] = {"mean": mean, "low": low, "high": high, "photos": len(ours)}
    beside = [each for name, each in against.items() if name not in OF_PLACE]
    if all(each["low"] > 0.0 for each in beside):
        verdict = "pays"
    elif against["whole photo"]["high"] < WORTH or any(each["high"] < 0.0 for each in beside):
        verdict = "does not pay"
    else:
        verdict = "cannot tell"
    return {
        "num_train": len(data.splits["train"]),
        "num_images": len(data.splits["val"]),
        "num_classes": len(data.class_names),
        "ways": [way.to_dict() for way in ways],
        "looks": looks.to_dict(),
        "plain": plain.to_dict(),
        "against": against,
        "verdict": verdict,
    }


def _chosen(ways: Sequence[Way], by: str) -> tuple[Way, Way]:
    """Return the best looks, and the best whole photo that costs no more, by the photos that an attribute is about."""

    def rank(way: Way) -> float:
        every = torch.cat([way.right_out_of_fold, way.right]) if by == "all" else getattr(way, by)
        return float(every.float().mean())

    looks = max((way for way in ways if way.kind == "looks"), key=rank)
    cheaper = [way for way in ways if way.kind == "whole" and way.multiplications <= looks.multiplications]
    return looks, max(cheaper, key=rank)


def read_advice(run: Path) -> dict[str, Any] | None:
    """Return what ``racnn advise --out RUN`` left in a run's folder.

    Raises:
        DataError: It is no such file.
    """
    path = run / "advise.json"
    if not path.is_file():
        return None
    try:
        advice = json.loads(path.read_text(encoding="utf-8"))
        needed = {"name", "view_sizes", "multiplications", "top1", "top1_interval"}
        if not advice["num_images"] or not all(needed <= way.keys() for way in advice["ways"]):
            raise ValueError("keys are missing")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is not what `racnn advise` writes ({error}); move it away") from None
    found: dict[str, Any] = advice
    return found


def format_advice(report: Mapping[str, Any], command: str) -> str:
    """Return a report of :func:`advise` as plain text: the table, the differences, the verdict, what to type.

    Args:
        report: From :func:`advise`.
        command: That trains on these photos with this network, ``racnn train PHOTOS``.
    """
    head = ["way to answer", "views, px", "cost", "ms", "out of fold %", "top-1 %", "95 % interval"]
    cheapest = min(way["multiplications"] for way in report["ways"])
    rows = [
        [
            way["name"],
            " ".join(map(str, way["view_sizes"])),
            f"{way['multiplications'] / cheapest:.1f}",
            f"{1000 * way['seconds']:.1f}",
            f"{100 * way['out_of_fold']:.1f}",
            f"{100 * way['top1']:.1f}",
            "{:.1f} - {:.1f}".format(*(100 * end for end in way["top1_interval"])),
        ]
        for way in sorted(report["ways"], key=lambda way: way["multiplications"])
    ]
    title = (
        f"{report['num_classes']} classes; fitted on {report['num_train']} photos, top-1 of {report['num_images']} others; cost: "
        f"multiplications, 1 is {cheapest / 1e6:.0f} million"
    )
    lines = [
        title,
        "",
        table(head, rows),
        "",
        "looking closer, beside what costs no more or looks nowhere in particular:",
    ]
    for name, each in report["against"].items():
        lines.append(
            f"  against {name}: {100 * each['mean']:+.1f} points (95 %: {100 * each['low']:+.1f} to {100 * each['high']:+.1f}, "
            f"{each['photos']} photos)"
        )
    return "\n".join([*lines, "", _words(report, command)])


def _words(report: Mapping[str, Any], command: str) -> str:
    looks, plain, verdict = report["looks"], report["plain"], report["verdict"]
    sizes = "[" + ", ".join(map(str, looks["view_sizes"])) + "]"
    closer = f"{command} --set model.view_sizes='{sizes}'"
    whole_photo = f"{command} --set model.view_sizes='[{plain['view_sizes'][0]}]'"
    ours, theirs = (f"{100 * way['top1']:.1f} %" for way in (looks, plain))
    middle = report["against"].get(AT_THE_MIDDLE)
    where = ""
    if verdict == "pays" and middle is not None and middle["low"] <= 0.0:
        where = (
            "\n  That it looks where it does, and not just at the middle, is "
            f"{'not shown by these photos' if middle['high'] > 0.0 else 'a loss here'} "
            f"({100 * middle['low']:+.1f} to {100 * middle['high']:+.1f} points)."
        )
    if verdict == "pays":
        return (
            f"Looking closer pays here: {looks['name']} at {looks['view_sizes'][0]} px answer {ours}, the best whole photo of no "
            f"more cost ({plain['view_sizes'][0]} px) {theirs}.{where}\n  {closer}"
        )
    if verdict == "does not pay":
        return (
            f"Looking closer does not pay here: the whole photo at {plain['view_sizes'][0]} px answers {theirs}, {looks['name']} "
            f"at {looks['view_sizes'][0]} px {ours}.\n  {whole_photo}"
        )
    reach = max((each["high"] - each["low"]) / 2 for each in report["against"].values())
    return (
        f"These photos cannot tell whether looking closer pays: differences below {100 * reach:.1f} points are within what chance "
        f"does on so few. Looking closer answers {ours}, the whole photo {theirs}; either is a fair choice:\n  {closer}\n  "
        f"{whole_photo}"
    )


def picture(report: Mapping[str, Any]) -> str:
    """Return the costs and accuracies of a report as an SVG."""
    dots = [
        Dot(
            cost=way["multiplications"],
            share=way["top1"],
            interval=tuple(way["top1_interval"]),
            label=str(way["view_sizes"][0]),
            title=f"{way['name']}, {' '.join(map(str, way['view_sizes']))} px: {100 * way['top1']:.1f} %",
            color=COLORS[way["kind"]],
            joined=way["kind"] == "whole",
        )
        for way in report["ways"]
    ]
    legend = {LEGEND[kind]: color for kind, color in COLORS.items()}
    caption = "multiplications per photo (logarithmic); numbers: px of a view"
    return cost_chart(dots, legend=legend, caption=caption)
