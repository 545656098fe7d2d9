"""Use a trained network: photos in, answers out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from racnn.config import Config
from racnn.data.folder_stream import photo_batches
from racnn.data.transforms import SourceTransform
from racnn.engine.checkpoint import digest, is_published, open_checkpoint, write_published
from racnn.engine.device import prepare
from racnn.errors import ConfigError
from racnn.evaluation.hedge import Caution, sure_answers
from racnn.evaluation.levels import load_caution
from racnn.models import build_model
from racnn.models.early_exit import EarlyExit, look_until_confident, stored_early_exit
from racnn.models.family import combined_log_probs
from racnn.models.parts import Parts
from racnn.models.racnn.model import RACNN, RACNNOutput
from racnn.ops.regions import to_boxes_xyxy
from racnn.portable.answers import Prediction, answer_dict, load_photos, sure_dict
from racnn.written import refuse_foreign


@dataclass
class Predictor:
    """A network from a checkpoint and what is needed to use it.

    Attributes:
        model: On its device, in evaluation mode.
        config: Configuration of the run.
        class_names: In the order of the logits.
        train_names: The photos it was trained on.
        val_names: The photos that were held out for validation.
        train_digests: What the training photos hold, in the order of their names; empty where that is not known.
        val_digests: The same of the validation photos.
        scales: How many scales were trained when the checkpoint was written.
        fused: Whether the fusion layer was.
        early_exit: When a photo needs no further look, where training has chosen that.
        caution: The levels of the classes and how careful to be, where they were asked for.
    """

    model: Any
    config: Config
    class_names: list[str]
    train_names: list[str]
    val_names: list[str]
    train_digests: list[str]
    val_digests: list[str]
    scales: int
    fused: bool
    early_exit: EarlyExit | None = None
    caution: Caution | None = None

    def predict(self, photos: Any, *, top: int = 3, batch_size: int = 16, why: bool = False) -> Any:
        """Say what is on photos.

        Args:
            photos: A photo, as a path, a PIL image or a uint8 array [h, w, 3] or [h, w]; or a folder, or a list of photos
                and folders.
            top: How many answers.
            batch_size: Photos at a time.
            why: Say also where each look sees the answer rather than the second most probable class.

        Returns:
            A :class:`Prediction`; of a folder or list one for each photo, in order.

        Raises:
            DataError: A photo cannot be read or is no such array, or a folder holds none.
            ConfigError: ``why`` of a network of another family than RA-CNN, or of one class.
        """
        if why:
            self.refuse_why()
        loaded, several = load_photos(photos)
        if not several:
            return self._look(loaded, top, why)[0]
        starts = range(0, len(loaded), batch_size)
        return [
            found for start in starts for found in self._look(loaded[start : start + batch_size], top, why)
        ]

    def refuse_why(self) -> None:
        """Refuse a network that cannot be asked why.

        Raises:
            ConfigError: It is of another family than RA-CNN, or knows one class.
        """
        if not isinstance(self.model, RACNN):
            raise ConfigError(
                f"why: only RA-CNN says it; this network is of model.family {self.config.model.family}"
            )
        if len(self.class_names) < 2:
            raise ConfigError("why: the network knows one class, and there is no other to tell it from")

    @torch.no_grad()
    def _look(
        self, photos: Sequence[tuple[Path | None, np.ndarray]], top: int, why: bool
    ) -> list[Prediction]:
        """Run the recursion on some photos."""
        config, model = self.config.data, self.model
        transform = SourceTransform(config.source_size, config.resize)
        sizes = [(photo.shape[0], photo.shape[1]) for _, photo in photos]
        sources = [transform.source(photo, size) for (_, photo), size in zip(photos, sizes, strict=True)]
        output = model(torch.stack(sources).to(next(model.parameters()).device), num_scales=self.scales)
        fused = output.fused if self.fused else None
        answers = combined_log_probs(output.logits, fused)
        cells = why_cells(self.model, output, answers) if why else None
        weighed = output.attentions if isinstance(output, RACNNOutput) else None
        looks = {f"scale_{number}": logits for number, logits in enumerate(output.logits, start=1)}
        looks |= {} if fused is None else {"fused": fused}
        sure = None if self.caution is None else sure_answers(self.caution, answers.cpu().exp().numpy())
        side = config.source_size
        boxes = [to_boxes_xyxy(region, (side, side)) for region in output.regions[1:]]
        views = [model.to_pixels(view).cpu() for view in output.views]
        return [
            Prediction(
                photo=photo,
                path=path,
                top=_best(answers[i], self.class_names, max(top, 2) if why else top),
                boxes_xyxy=[transform.to_photo(box[i].tolist(), sizes[i]) for box in boxes],
                views=[view[i] for view in views],
                looks={name: _best(logits[i], self.class_names) for name, logits in looks.items()},
                sure=None if sure is None else sure[i],
                why=None if cells is None else [each[i].cpu() for each in cells],
                attention=None if weighed is None else [each[i].cpu() for each in weighed],
            )
            for i, (path, photo) in enumerate(photos)
        ]

    def stream(
        self,
        places: Iterable[Path],
        *,
        batch_size: int = 32,
        workers: int = 0,
        early: EarlyExit | None = None,
        top: int = 3,
    ) -> Iterator[dict[str, Any]]:
        """Say what is on photos, one after another; memory does not grow with their number.

        Args:
            places: Photos, and folders of photos.
            batch_size: Photos at a time.
            workers: Processes that read photos ahead.
            early: When a photo needs no further look; None: all scales look at every photo.
            top: How many answers.

        Yields:
            A row a photo, in order: ``photo``; ``top``, answers of ``name`` and ``probability``; ``scales``, how many
            looked; ``boxes_xyxy``, where the finer ones did, in the photo's pixels; where levels were loaded ``sure`` of ``level``,
            ``name`` and ``probability``. Of a photo that cannot be read
            ``photo`` and ``error``.

        Raises:
            DataError: A path does not exist, or a folder holds no photos.
        """
        batches, transform = photo_batches(places, self.config.data, batch_size=batch_size, workers=workers)
        parts, side = Parts(), self.config.data.source_size
        for batch in batches:
            rows: list[dict[str, Any]] = [{"photo": str(path)} for path in batch.paths]
            for position, error in batch.errors.items():
                rows[position]["error"] = error
            readable = [position for position in range(len(rows)) if position not in batch.errors]
            given = {"image": batch.images, "position": torch.tensor(readable)}
            found = parts.run(partial(self._answer, early), given) if readable else []
            for positions, log_probs, regions in itertools.chain(*found):
                boxes = [to_boxes_xyxy(region, (side, side)) for region in regions[1:]]
                sure = None if self.caution is None else sure_answers(self.caution, log_probs.exp().numpy())
                for i, position in enumerate(positions):
                    size = batch.sizes[position]
                    assert size is not None
                    rows[position] |= answer_dict(
                        _best(log_probs[i], self.class_names, top),
                        [transform.to_photo(box[i].tolist(), size) for box in boxes],
                    )
                    rows[position] |= sure_dict(None if sure is None else sure[i])
            yield from rows

    @torch.no_grad()
    def _answer(
        self, early: EarlyExit | None, part: dict[str, Tensor]
    ) -> list[tuple[list[int], Tensor, list[Tensor]]]:
        """Return positions, log-probabilities and regions of photos that were looked at equally often, on the CPU."""
        images = part["image"].to(next(self.model.parameters()).device, non_blocking=True)
        if early is None:
            output = self.model(images, num_scales=self.scales)
            log_probs = combined_log_probs(output.logits, output.fused if self.fused else None)
            stopped = [(torch.arange(len(images)), log_probs, output.regions)]
        else:
            stopped = look_until_confident(self.model, images, early, scales=self.scales, fused=self.fused)
        return [
            (part["position"][index.cpu()].tolist(), log_probs.cpu(), [region.cpu() for region in regions])
            for index, log_probs, regions in stopped
        ]


def why_cells(model: RACNN, output: Any, answers: Tensor) -> list[Tensor]:
    """Return where each look sees the most probable class of answers [B, C] rather than the second, [B, h, w] each."""
    first, second = answers.topk(2, dim=1).indices.unbind(dim=1)
    return [
        model.difference(number, scale.weighed, first, second)
        for number, scale in enumerate(output.scales, start=1)
    ]


def load(path: Path | str, device: torch.device | str = "cpu", *, levels: bool = False) -> Predictor:
    """Build the network that a checkpoint describes and fill it.

    Args:
        path: ``best.pt`` or ``last.pt`` of a run, or a .safetensors file that was exported from one.
        device: Where to put the network.
        levels: Answer also at the level that is sure, as ``racnn evaluate --levels`` has chosen it.

    Raises:
        CheckpointError: The file is missing or damaged, or its parts do not fit each other.
        DataError: There is no such choice, or it is damaged or of other weights.
    """
    device = torch.device(device)
    stored = open_checkpoint(Path(path))
    content, config = stored.content, stored.config
    model = build_model(config.model, num_classes=len(content.class_names), weights=False)
    model.load_state_dict(content.model)
    prepare(model, config, device, training=False)
    weights = digest(model.state_dict())
    return Predictor(
        model=model.eval(),
        config=config,
        class_names=content.class_names,
        train_names=content.train_names,
        val_names=content.val_names,
        train_digests=content.train_digests,
        val_digests=content.val_digests,
        scales=max(1, content.trained_scales),
        fused=content.fusion_trained,
        early_exit=stored_early_exit(content.early_exit, weights, path=Path(path)),
        caution=load_caution(Path(path), weights, content.class_names) if levels else None,
    )


def export_trained(path: Path, out: Path, card: str | None = None) -> None:
    """Write the network of a checkpoint as .safetensors, with what is needed to use it; what a run needs is left out.

    Args:
        path: The checkpoint.
        out: Where to; an earlier export there is replaced.
        card: See :func:`racnn.engine.card.model_card`.

    Raises:
        CheckpointError: As :func:`load` does.
        ConfigError: Something stands at ``out`` that is no export.
    """
    refuse_foreign([out], flag="--out", ours=is_published)
    content = open_checkpoint(path).content
    kept = content.model_fields_set - {"progress", "optimizer"}
    write_published(out, {name: getattr(content, name) for name in kept}, card)
    open_checkpoint(out)  # what is handed on can be read


def network_digest(trained: Predictor) -> str:
    """Return what identifies the weights of a network."""
    return digest(trained.model.state_dict())


def _best(logits: Tensor, names: list[str], num: int = 3) -> list[tuple[str, float]]:
    probs, classes = logits.float().softmax(dim=0).topk(min(num, len(names)))
    return [(names[c], p) for c, p in zip(classes.tolist(), probs.tolist(), strict=True)]
