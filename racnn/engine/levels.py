"""Choose how careful the answers of a network are to be, see :mod:`racnn.evaluation.levels`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from racnn.data import Data
from racnn.data.groups import Levels
from racnn.data.taxonomy import read_levels
from racnn.engine.evaluator import Measured, predict_split
from racnn.engine.predictor import Predictor, network_digest
from racnn.errors import ConfigError
from racnn.evaluation.hedge import WANTED, Caution
from racnn.evaluation.levels import calibrate_caution
from racnn.models.calibration import weights_out_of_fold
from racnn.models.early_exit import pooled_answer
from racnn.models.family import combined_log_probs
from racnn.models.racnn.heads import Head, fit_head
from racnn.models.racnn.model import RACNN


def choose_caution(
    trained: Predictor,
    checkpoint: Path,
    source: str | None,
    data: Callable[[], Data],
    root: Path | None = None,
) -> Caution:
    """Return how careful to be, by training photos answered out of fold where the run still has them, else by validation photos.

    Args:
        trained: The network.
        checkpoint: Its file, beside which a run of ``quick`` keeps the descriptors of its training photos.
        source: A taxonomy, see :func:`racnn.data.taxonomy.read_levels`; None: that of ``data.levels``.
        data: Returns the data set that it was trained on; asked for only where validation photos must choose.
        root: Its folder, where it has moved.

    Raises:
        ConfigError: No taxonomy is named.
        DataError: It does not suit the classes.
    """
    levels = levels_of(trained, source, root)
    known = answers_out_of_fold(trained, checkpoint.parent / "descriptors")
    chosen_by = "out of fold"
    if known is None:
        found = predict_split(trained, data().splits["val"])
        known = combined_log_probs(found.logits, found.fused), found.labels
        chosen_by = "validation"
    weight = calibrate_caution(levels, *known)
    return Caution(network_digest(trained), levels.names, levels.groups, weight, WANTED, chosen_by)


def combined(measured: Measured) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities [N, C] of all looks together of photos that were measured, and their classes [N]."""
    found = measured.predictions
    return combined_log_probs(found.logits, found.fused), found.labels


def levels_of(trained: Predictor, source: str | None, root: Path | None) -> Levels:
    """Return the groups of a network's classes.

    Raises:
        ConfigError: No taxonomy is named.
        DataError: It does not suit the classes.
    """
    source = source or trained.config.data.levels
    if source is None:
        raise ConfigError(
            "--levels: expected a taxonomy, for the run's configuration names none (data.levels)"
        )
    config = trained.config.data
    return read_levels(
        source, trained.class_names, config if root is None else config.model_copy(update={"root": root})
    )


def answers_out_of_fold(trained: Predictor, folder: Path) -> tuple[Tensor, Tensor] | None:
    """Return what the looks together say of training photos [N, C], by heads that had not seen them, and their classes [N].

    None unless the descriptors in a folder give this network's very classifiers: the trunk has not learnt since.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model: Any = trained.model
    if not isinstance(model, RACNN) or trained.scales < model.num_scales or model.levels is not None:
        return None  # validation photos tell what heads of levels make of the looks
    heads, labels = list[Head](), torch.zeros(0)
    for scale, classifier in enumerate(model.classifiers, start=1):
        weight = classifier.get_parameter("weight").detach().cpu()
        try:
            rows = load_file(folder / f"look_{scale}.safetensors")
            descriptors, labels = rows["descriptors"], rows["labels"]
            fits = descriptors.shape[1] == weight.shape[1] and int(labels.max()) < model.num_classes
        except (OSError, SafetensorError, LookupError, RuntimeError):
            return None
        if not fits or len(labels.unique()) < model.num_classes:
            return None
        head = fit_head(descriptors, labels, model.num_classes)
        if not torch.allclose(head.weight, weight, rtol=1e-3, atol=1e-5):
            return None
        heads.append(head)
    known = heads[0].answered
    if not known.any():
        return None
    answers = [head.answers[known] for head in heads]
    return pooled_answer(answers, weights_out_of_fold(heads, labels)), labels[known]
