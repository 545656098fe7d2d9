"""What a user should be told about a run, in plain words: imbalance at its start, collapse on the way, a diagnose at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from racnn.config import Config
from racnn.data import Data
from racnn.data.contents import WORDS, describe_copies, find_copies
from racnn.data.listing import describe_passed
from racnn.data.loader import num_left_over
from racnn.data.names import lookalike_warnings
from racnn.models import FAMILIES
from racnn.models.phase import Phase
from racnn.sections import DataConfig

SAME = 0.01  # standard deviation over photos, of a region's centre and side in its view, that says nothing of the photo
COLLAPSE_SHARE = 0.5  # of the regions at a bound, from which a warning is given
IMBALANCE = 10  # photos of the largest class for one of the smallest, from which a warning is given
MOST_NAMED = 20  # groups of copies, or classes
CHANCE = 4  # photos; two standard deviations of a paired difference in which all of them go one way
WIDE = 0.85  # mean side of a region, as a share of its view's, from which zooming in hardly enlarges anything


def diagnose(report: Mapping[str, Any], config: Config) -> list[str]:
    """Return what is wrong with a trained network and what to try, one line each; empty where every look pays.

    A finer scale pays where its top-1 on the validation photos is above the coarser one's, or equal with a better mean
    log-probability of the true class.

    Args:
        report: Report of :func:`racnn.evaluation.report.evaluation_report`, on photos that were held out from training.
        config: Configuration of the run.
    """
    bounds = config.model.region_bounds()
    steps = any(phase.augments for phase in config.steps_by_key().values())
    lines = collapse_warnings(report["regions"], bounds, steps=steps)
    lines += _sameness_warning(report["regions"], config) if steps else []
    scales = [f"scale_{s}" for s in range(1, len(bounds) + 2) if f"scale_{s}" in report["top1"]]
    # where all looks are fitted or trained together, the fusion weighs what each is worth
    for number, (coarse, fine) in enumerate(pairwise(scales), start=1) if steps else ():
        if report["top1"][coarse] < 1.0 and _rank(report, fine) <= _rank(report, coarse):
            lines.append(f"{_compare(report, fine, coarse)}: {_advice(number, report['regions'], config)}")
    if "fused" in report["top1"]:
        best = max(scales, key=lambda name: _rank(report, name))
        fewer = report["num_images"] * (report["top1"][best] - report["top1"]["fused"])
        if fewer > CHANCE and report["log_prob"]["fused"] < report["log_prob"][best]:
            lines.append(
                f"{_compare(report, 'fused', best)}: a look that is much worse than the others drags the fused answer "
                "down; leave out that scale (one entry less in model.view_sizes)"
                + (", or give fusion more validation photos (data.val_fraction)" if steps else "")
            )
    return lines


def _rank(report: Mapping[str, Any], answer: str) -> tuple[float, float]:
    return report["top1"][answer], report["log_prob"][answer]


def _compare(report: Mapping[str, Any], worse: str, better: str) -> str:
    """Return who is not better than whom, with the numbers; and how few photos decide where few do."""
    photos = report["num_images"]
    (low, low_log), (high, high_log) = _rank(report, worse), _rank(report, better)
    few = round(photos * (high - low))
    noise = f", {few} photo{'' if few == 1 else 's'}" if few else ""
    return (
        f"{worse} is not better than {better} on the {photos} validation photos (top-1 {100 * low:.1f} against "
        f"{100 * high:.1f} %{noise}; mean log-probability {low_log:.3f} against {high_log:.3f})"
    )


def _advice(number: int, regions: Mapping[str, Mapping[str, float]], config: Config) -> str:
    """Return what to try where a look did not pay, by what its region does and how it was taught."""
    region, side = f"region_{number}", regions[f"region_{number}"]["tl_mean"]
    if config.model.remembers:
        return f"what {region} shows adds nothing; take fewer model.view_sizes, or train for longer"
    taught = _taught(number, config)
    if not taught:
        kinds = FAMILIES[config.model.family].phases
        teaching = [kind for kind, phase in kinds.items() if phase.taught_regions is not Phase.taught_regions]
        add = f"; add an {' or '.join(teaching)} phase of scales: [{number}]" if teaching else ""
        return f"{region} was never taught where to look{add}"
    if regions[region]["at_bound"] > COLLAPSE_SHARE:
        return f"{region} has collapsed, see above"
    key, phase = list(taught.items())[-1]
    square = getattr(phase, "target", None) == "peak"  # of fixed size
    raised = f", or raise {key}.trim or {key}.level (tools/teacher.py shows what each gives)"
    smaller = "" if square else raised
    if side > WIDE:
        return (
            f"{region} keeps nearly the whole view (mean side {side:.2f}), so there is little to gain; make "
            f"model.bounds[{number - 1}] narrower{smaller}"
        )
    coarse, fine = config.model.view_sizes[number - 1 : number + 1]
    before = coarse * side
    if fine < before:
        return (
            f"{region} (mean side {side:.2f}) is {before:.0f} px wide in the view of scale_{number}, and scale_{number + 1} "
            f"shows it with {fine}: no closer look; make model.view_sizes[{number}] larger{smaller}"
        )
    see = f"see with `racnn visualize` whether {region} holds what tells the classes apart"
    if square:
        return f"{see}; where a square of fixed size does not fit, --set {key}.target=component reads its size too"
    started = [p for p in config.phases() if number + 1 in p.scales and getattr(p, "init_from", None)]
    start = "" if started else f", from scale {number} (init_from: {number})"
    larger = [f"lower {key}.{name}" for name in ("trim", "level") if getattr(phase, name, 0) > 0]
    return (
        f"{see}. If it does, train scale_{number + 1} longer{start}; if it cuts that off, "
        f"{' or '.join(larger) or f'widen model.bounds[{number - 1}]'}; if it is elsewhere, train scale_{number} better first"
    )


def collapse_warnings(
    regions: Mapping[str, Mapping[str, float]], bounds: Sequence[tuple[float, float]], *, steps: bool = True
) -> list[str]:
    """Return a line for each region that has run against a bound on most photos; ``steps``: by training."""
    lines = []
    advice = "attention has collapsed; try a smaller ranking learning rate, more apn_init epochs, or other model.bounds"
    if not steps:
        advice = "what region 1 is read from fills them, or is too small; other model.bounds may suit them"
    for (name, statistics), (low, high) in zip(regions.items(), bounds, strict=False):
        if statistics["at_bound"] > COLLAPSE_SHARE:
            grown = statistics["tl_mean"] > (low + high) / 2
            done = "grown to its upper" if grown else "shrunk to its lower"
            lines.append(
                f"{name} has {done} bound on {100 * statistics['at_bound']:.0f} % of the photos (mean side "
                f"{statistics['tl_mean']:.2f}, bounds {low} to {high}): {advice}"
            )
    return lines


def _sameness_warning(regions: Mapping[str, Mapping[str, float]], config: Config) -> list[str]:
    """Return a line for each region that was taught and is all but the same on every photo."""
    lines = []
    for number, (name, statistics) in enumerate(regions.items(), start=1):
        taught = _taught(number, config)
        if taught and max(statistics[f"{key}_std"] for key in ("tx", "ty", "tl")) < SAME:
            key = list(taught)[-1]
            lines.append(
                f"{name} is the same on every photo (centre and side vary by less than {SAME}): it has not learned to "
                f"look at the photo; give it more photos or epochs ({key}.epochs), or a smaller rate ({key}.lr)"
            )
    return lines


def _taught(number: int, config: Config) -> dict[str, Phase]:
    """Return the phases that teach a region where to look, by key."""
    phases = {key: p.resolved(config.model.num_scales) for key, p in config.phases_by_key().items()}
    return {key: phase for key, phase in phases.items() if number in phase.taught_regions()}


def imbalance_warning(counts: Sequence[int], class_names: Sequence[str], balance: str) -> str | None:
    """Return a line where some class has many times the photos of another and nothing is done about it."""
    few, many = min(counts), max(counts)
    if balance != "none" or many <= IMBALANCE * few:
        return None
    rare, common = class_names[counts.index(few)], class_names[counts.index(many)]
    return (
        f"class '{common}' has {many} training photos and '{rare}' has {few}: rare classes will be neglected; "
        "try data.balance=weights or data.balance=sampling"
    )


def describe_data(data: Data, config: DataConfig, device: object, *, steps: bool = True) -> list[str]:
    """Return what a user should know of the data before the first step, one line each: above all what makes figures worth less.

    Without ``steps``, where all is fitted in one go, batches have no say and classes count the same.
    """
    lines = [f"left out {name}: {reason}" for name, reason in data.skipped.items()]
    sizes = ", ".join(f"{len(photos)} {split}" for split, photos in data.splits.items())
    lines.append(f"{data.dataset}: {len(data.class_names)} classes, photos: {sizes}; on {device}")
    if config.scene_size > config.source_size:
        lines.append(
            f"scenes of {config.scene_size} px are shrunk to data.source_size {config.source_size}, so that closer looks find "
            f"less detail; data.source_size={config.scene_size} keeps it"
        )
    if data.passed_over:
        lines.append(describe_passed(data.passed_over))
    splits = {split: photos.records for split, photos in data.splits.items()}
    if copies := describe_copies(find_copies(splits), data.class_names, most=MOST_NAMED):
        lines.append("warning: " + "\n".join(copies))
    for split in ("val", "test"):
        labels = {record.label for record in splits[split]}
        if missing := [name for label, name in enumerate(data.class_names) if label not in labels]:
            named = [f"'{name}'" for name in missing[:MOST_NAMED]] + ["..."] * (len(missing) > MOST_NAMED)
            none = f"no {WORDS[split]} photos of {len(missing)} classes, which are not measured"
            lines.append(f"warning: {none}: {', '.join(named)}")
    lines += [f"warning: {line}" for line in lookalike_warnings(data.class_names)]
    for split in ("train", "held_out") if steps else ():
        if num_left_over(len(splits.get(split, [])), config.batch_size) == 1:
            lines.append(
                f"{split}: {len(splits[split])} photos leave a single one over at {config.batch_size} a batch; it joins the "
                "batch before it"
            )
    if steps and (warning := imbalance_warning(data.class_counts(), data.class_names, config.balance)):
        lines.append(f"warning: {warning}")
    return lines
