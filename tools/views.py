"""Compare views of photos on a frozen trunk: looks beside whole photos, centred crops and others' places, of any size.

    python tools/views.py tools/studies/equal_cost.yaml runs/split0/best.pt runs/split1/best.pt --out runs/views

Each run is one of `--recipe quick` whose folder still holds its descriptors; it gives the trunk, and where its looks go. A study
names rows, each a list of views, and the row that the others are compared with:

    base: three looks
    rows:
      whole photo at equal cost: [whole 544 px]
      three whole views: [whole, whole mirrored, shifted]
      three centred looks: [whole, centred 0.7, centred 0.5]
      where another photo's looks went: [whole, other 2, other 3]
      three looks: [whole, look 2, look 3]

Every view has a head of its own, fitted as quick does, and the views of a row are weighed by answers out of fold; validation photos
only report. What the trunk makes of a view is read once and kept in the folder of --out, so that a further row of views that
were read takes seconds, and a study that was stopped goes on where it was.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from racnn.cli import run_with_messages
from racnn.errors import ConfigError, did_you_mean
from racnn.plain_yaml import read_yaml
from racnn.written import refuse_blocked, refuse_foreign, write_text
from search import refuse_other_network, stored_looks

if TYPE_CHECKING:
    from torch import Tensor

    from racnn.engine.predictor import Predictor

VIEW = re.compile(
    r"(?P<fixed>whole|shifted|centred (?P<share>0\.\d+)|(?P<place>look|other) (?P<look>[2-9]))"
    r"(?: (?P<side>\d{2,4}) px)?(?P<mirrored> mirrored)?"
)
EXPECTED = "expected whole, shifted, centred 0.7, look 2 or other 2, then perhaps a size such as 448 px, then perhaps mirrored"
SHIFTED = (0.05, 0.05, 0.95)  # the upper left corner of the photo is left out
LOOKED_AT = "regions"  # file of where the looks at validation photos went


@dataclass(frozen=True)
class View:
    """A view of each photo.

    Attributes:
        name: As in the study.
        region: (tx, ty, tl) of every photo, or None where it is a photo's own.
        look: The look whose region it is, counted from 1.
        other: Whether it is that of another photo, half the split away.
        side: In pixels, 0: that of the look.
        mirrored: Left to right.
    """

    name: str
    region: tuple[float, float, float] | None
    look: int
    other: bool
    side: int
    mirrored: bool

    @classmethod
    def parse(cls, text: str) -> View:
        """Return the view that a study names.

        Raises:
            ConfigError: There is none of that name.
        """
        found = VIEW.fullmatch(text)
        if found is None:
            raise ConfigError(f"view '{text}': {EXPECTED}")
        share, side = found["share"], int(found["side"] or 0)
        if side and side < 32:
            raise ConfigError(f"view '{text}': expected at least 32 px")
        if share is not None and not float(share):
            raise ConfigError(f"view '{text}': expected a share of the photo's side above 0")
        whole = {"whole": (0.0, 0.0, 1.0), "shifted": SHIFTED}.get(found["fixed"].split()[0])
        region = (0.0, 0.0, float(share)) if share is not None else whole
        look = int(found["look"] or 1)
        return cls(text, region, look, found["place"] == "other", side, found["mirrored"] is not None)


@dataclass
class Answers:
    """What a row answers of the photos of one run.

    Attributes:
        cost: Multiplications of the trunk, in views of the run's first size.
        log_prob: [N, C] of the validation photos.
        labels: [N].
        photos: N names.
        log_prob_out_of_fold: [M, C] of the training photos.
        labels_out_of_fold: [M].
        photos_out_of_fold: M names.
    """

    cost: float
    log_prob: Tensor
    labels: Tensor
    photos: list[str]
    log_prob_out_of_fold: Tensor
    labels_out_of_fold: Tensor
    photos_out_of_fold: list[str]


def main(
    study: Annotated[Path, typer.Argument(help="A YAML file of rows.")],
    checkpoints: Annotated[list[Path], typer.Argument(help="best.pt of runs of quick, such as one a split.")],
    out: Annotated[Path, typer.Option(help="Folder of rows.csv, table.md and what was read.")],
    data: Annotated[Path | None, typer.Option(help="The dataset's folder, if it has moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Write what rows of views come to, beside one another on the same photos."""
    from racnn.engine.device import pick_device
    from racnn.engine.predictor import load

    base, rows = read_study(study)
    refuse_foreign([out / "rows.csv", out / "table.md"], flag="--out")
    refuse_blocked(out, "--out")
    found: dict[str, list[Answers]] = {name: [] for name in rows}
    for checkpoint in checkpoints:
        run = Run(checkpoint, load(checkpoint, pick_device(device)), data, out / "views")
        run.read([view for views in rows.values() for view in views])
        for name, views in rows.items():
            found[name].append(run.answer(views))
    write_text(out / "rows.csv", format_rows(found, checkpoints), flag="--out")
    write_text(out / "table.md", format_table(found, base), flag="--out")
    print((out / "table.md").read_text(encoding="utf-8"))


def read_study(path: Path) -> tuple[str, dict[str, list[View]]]:
    """Return the name of the row that others are compared with, and the views of every row.

    Raises:
        ConfigError: A key is unknown or missing, or not of its type.
    """
    values = read_yaml(path)
    for key in values:
        if key not in ("base", "rows"):
            raise ConfigError(f"{path}: unknown key '{key}'{did_you_mean(str(key), ('base', 'rows'))}")
    rows = values.get("rows")
    if not isinstance(rows, dict) or not rows:
        raise ConfigError(f"{path}: expected 'rows', at least one by name")
    base = str(values.get("base"))
    found = {}
    for name, views in rows.items():
        if not isinstance(views, list) or not views or not all(isinstance(view, str) for view in views):
            raise ConfigError(f"{path}: rows.{name}: expected a list of views, got {views!r}")
        try:
            found[str(name)] = [View.parse(view) for view in views]
        except ConfigError as error:
            raise ConfigError(f"{path}: rows.{name}: {error}") from None
    if base not in found:
        raise ConfigError(
            f"{path}: base: expected the name of a row, got '{base}'{did_you_mean(base, found)}"
        )
    return base, found


class Run:
    """The trunk of a run of quick, its photos, and what was read of them.

    Args:
        checkpoint: Its file.
        trained: Loaded from it.
        root: The data set's folder, where it has moved.
        folder: Folder of what was read.

    Raises:
        ConfigError: The run's folder holds no descriptors of this network.
    """

    def __init__(self, checkpoint: Path, trained: Predictor, root: Path | None, folder: Path) -> None:
        from racnn.engine.evaluator import data_of
        from racnn.engine.predictor import network_digest
        from racnn.ops.regions import whole

        model = trained.model
        self.trained = trained
        self.photos = data_of(trained, root=root).splits
        self.folder = folder
        self.network = network_digest(trained)
        self.rows: dict[tuple[str, str], dict[str, Tensor]] = {}  # by split and view
        num = len(self.photos["train"])
        went = [whole(num)]
        for region in range(1, trained.scales):
            proposed, finer = stored_looks(checkpoint.parent / "descriptors", region, num)
            refuse_other_network(trained, self.photos["train"], region, proposed, finer)
            went.append(proposed)
        if getattr(model, "mask", True) or getattr(model, "zoom_from", "") != "source":
            raise ConfigError(
                f"{checkpoint}: expected a run of quick, whose views are cut from the photo, without a mask"
            )
        self.went = {"train": went}

    def read(self, views: list[View]) -> None:
        """Read the views that were not read before, all of them in one go over the photos.

        Raises:
            ConfigError: A view is of a look that the run does not have.
        """
        for view in views:
            if view.look > self.trained.scales:
                raise ConfigError(f"view '{view.name}': the run has {self.trained.scales} looks")
        self.went["val"] = self._looked_at()
        for split in ("train", "val"):
            missing = []
            for view in dict.fromkeys(views):
                stored = self._stored(split, view.name)
                if stored is None:
                    missing.append(view)
                else:
                    self.rows[split, view.name] = stored
            if missing:
                self._read(split, missing)

    def answer(self, views: list[View]) -> Answers:
        """Return what views of each photo answer together, each by a head of its own."""
        import torch

        from racnn.models.calibration import weights_out_of_fold
        from racnn.models.early_exit import pooled_answer
        from racnn.models.racnn.heads import fit_head

        train, val = ([self.rows[split, view.name] for view in views] for split in ("train", "val"))
        labels, num = train[0]["labels"], self.trained.model.num_classes
        heads = [fit_head(rows["descriptors"], labels, num) for rows in train]
        known = heads[0].answered
        weights = weights_out_of_fold(heads, labels)
        logits = [
            torch.nn.functional.linear(rows["descriptors"], head.weight, head.bias)
            for rows, head in zip(val, heads, strict=True)
        ]
        return Answers(
            sum(self._cost(self._side(view)) for view in views)
            / self._cost(self.trained.model.view_sizes[0]),
            pooled_answer(logits, weights),
            val[0]["labels"],
            [record.name for record in self.photos["val"].records],
            pooled_answer([head.answers[known] for head in heads], weights),
            labels[known],
            [
                record.name
                for record, kept in zip(self.photos["train"].records, known.tolist(), strict=True)
                if kept
            ],
        )

    def _looked_at(self) -> list[Tensor]:
        """Return where the looks at the validation photos went, [N, 3] each."""
        from racnn.data import eval_loader
        from racnn.engine.evaluator import predict

        stored = self._stored("val", LOOKED_AT)
        if stored is None:
            model = self.trained.model
            device = next(model.parameters()).device
            batches = eval_loader(self.photos["val"], self.trained.config.data)
            regions = predict(model, batches, device=device, num_scales=self.trained.scales).regions
            stored = {f"look_{number}": region for number, region in enumerate(regions, start=1)}
            self._store("val", LOOKED_AT, stored)
        return [stored[f"look_{number}"] for number in range(1, self.trained.scales + 1)]

    def _read(self, split: str, views: list[View]) -> None:
        from tqdm import tqdm

        from racnn.data import eval_loader
        from racnn.models.parts import read_rows

        model = self.trained.model
        device = next(model.parameters()).device

        def read(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            source = model.normalise(batch["image"].to(device))
            found = {"labels": batch["label"]}
            for view in views:
                region = self._region(split, view, batch["index"]).to(device)
                side = self._side(view)
                crop = model.sample(source, region, (side, side), antialias=model.antialias)
                features = model.extract(view.look, crop.flip(3) if view.mirrored else crop)
                found[view.name] = model.describe(features).cpu()
            return found

        batches = eval_loader(self.photos[split], self.trained.config.data)
        rows = read_rows(
            read, tqdm(batches, desc=f"{len(views)} views, {split}", disable=None), device=device
        )
        for view in views:
            own = {"descriptors": rows[view.name], "labels": rows["labels"]}
            self._store(split, view.name, own)
            self.rows[split, view.name] = own

    def _region(self, split: str, view: View, index: Tensor) -> Tensor:
        """Return where a view of the photos at positions [B] is, [B, 3]."""
        import torch

        if view.region is not None:
            return torch.tensor([view.region]).expand(len(index), -1)
        went = self.went[split][view.look - 1]
        # in most data sets photos are in the order of their classes, so that half of them on is another class
        return went[(index - len(went) // 2) % len(went)] if view.other else went[index]

    def _side(self, view: View) -> int:
        """Return the side of a view in pixels: that of its look, unless the study says otherwise."""
        return view.side or int(self.trained.model.view_sizes[view.look - 1])

    def _cost(self, side: int) -> float:
        """Return the multiplications of the trunk on a view of so many pixels."""
        import torch

        from racnn.models.cost import multiplications

        model = self.trained.model
        view = next(model.parameters()).new_zeros(1, 3, side, side)
        with torch.no_grad():
            return multiplications(lambda: model.extract(1, view))

    def _file(self, split: str, name: str) -> Path:
        return self.folder / f"{self.network[:12]}-{split}-{name.replace(' ', '_')}.safetensors"

    def _key(self, split: str) -> str:
        from racnn import __version__
        from racnn.engine.checkpoint import digest

        photos, config, model = self.photos[split], self.trained.config, self.trained.model
        return digest(
            {
                "network": self.network,
                "photos": [(record.name, record.label) for record in photos.records],
                "data": config.data.model_dump(mode="json"),
                "where": [next(model.parameters()).device.type, str(model.compute_dtype), __version__],
            }
        )

    def _stored(self, split: str, name: str) -> dict[str, Tensor] | None:
        from racnn.engine.checkpoint import read_rows

        return read_rows(self._file(split, name), self._key(split))

    def _store(self, split: str, name: str, rows: dict[str, Tensor]) -> None:
        from racnn.engine.checkpoint import write_rows

        self.folder.mkdir(parents=True, exist_ok=True)
        write_rows(self._file(split, name), self._key(split), rows)


def format_rows(found: dict[str, list[Answers]], checkpoints: list[Path]) -> str:
    """Return a CSV table of every row and run."""
    import csv
    import io

    import torch

    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(
        ["row", "checkpoint", "cost", "top1", "log_prob", "top1_out_of_fold", "log_prob_out_of_fold"]
    )
    for name, runs in found.items():
        for checkpoint, answers in zip(checkpoints, runs, strict=True):
            figures = []
            for log_prob, labels in (
                (answers.log_prob, answers.labels),
                (answers.log_prob_out_of_fold, answers.labels_out_of_fold),
            ):
                own = log_prob.gather(1, labels[:, None])
                figures += [float((log_prob.argmax(dim=1) == labels).float().mean()), float(own.mean())]
            assert all(torch.isfinite(torch.tensor(figures)))
            writer.writerow([name, checkpoint, f"{answers.cost:.3f}", *(f"{x:.4f}" for x in figures)])
    return file.getvalue()


def format_table(found: dict[str, list[Answers]], base: str) -> str:
    """Return a markdown table: of all runs together, each row's answers, and what the base has more."""
    import torch

    def right(answers: Answers) -> tuple[Tensor, Tensor]:
        return (
            answers.log_prob.argmax(dim=1) == answers.labels,
            answers.log_prob_out_of_fold.argmax(dim=1) == answers.labels_out_of_fold,
        )

    ours = [torch.cat(every) for every in zip(*map(right, found[base]), strict=True)]
    photos = [
        [name for each in found[base] for name in each.photos],
        [name for each in found[base] for name in each.photos_out_of_fold],
    ]
    lines = [
        f"| {len(found[base])} run(s) | cost | top-1 % | log-probability | {base} minus it (95 %) | out of fold | {base} minus it (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        own = [torch.cat(every) for every in zip(*map(right, runs), strict=True)]
        log_prob = torch.cat([each.log_prob.gather(1, each.labels[:, None]) for each in runs]).mean()
        each_run = ", ".join(f"{100 * right(each)[0].float().mean():.1f}" for each in runs)
        more = [
            ""
            if name == base
            else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in difference(*pair)))
            for pair in zip(ours, own, photos, strict=True)
        ]
        shares = [100 * float(each.float().mean()) for each in own]
        lines.append(
            f"| {name} | {runs[0].cost:.2f} | {shares[0]:.1f} ({each_run}) | {log_prob:.3f} | {more[0]} | {shares[1]:.1f} | {more[1]} |"
        )
    return "\n".join(lines) + "\n"


def difference(ours: Tensor, others: Tensor, photos: list[str]) -> tuple[float, float, float]:
    """Return by how much one share of right answers exceeds another, and its 95 % interval.

    Several runs answer the same photo: then its answers are no independent ones, and the interval is that of a ratio over photos
    (clusters, linearised: Cochran, "Sampling Techniques", 1977, section 9A).

    Args:
        ours: bool [N].
        others: bool [N], of the same answers.
        photos: N names.
    """
    import torch

    from racnn.evaluation.metrics import paired_difference

    names = {name: number for number, name in enumerate(dict.fromkeys(photos))}
    if len(names) == len(photos):
        return paired_difference(ours, others)
    index = torch.tensor([names[name] for name in photos])
    gains = ours.double() - others.double()
    mean = float(gains.mean())
    sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, gains - mean)
    error = float((sums**2).sum() * len(names) / (len(names) - 1)) ** 0.5 / len(photos)
    return mean, mean - 1.96 * error, mean + 1.96 * error


if __name__ == "__main__":
    run_with_messages(lambda: typer.run(main))
