"""The phases of a network that glimpses in sequence: it learns what it sees by gradients, and where to look by trial, or first by example.

Three losses of a policy, each of which moves only the parameters that it is about:

classification   what, where, memory and classifier, from the true class
policy           the location network, and of two layers the second one and its context, by REINFORCE (Williams 1992): a place is made
                 more probable where the answers after it were more probably right than was expected, less where they were not
baseline         what is expected, from what was then earned
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from racnn.models.backbone import Backbone
from racnn.models.parts import read_rows
from racnn.models.phase import Batch, GradientPhase, Phase, PhaseContext
from racnn.models.recurrent.network import Recurrent, RecurrentOutput
from racnn.models.recurrent.places import evidence, taught_places

PLACES = "views_places"  # the rows that batches bring along where photos are not opened; a file of a run begins with views_


class _Looking(GradientPhase):
    """What all phases of these networks have in common: they take all looks, and are judged by the last answer."""

    trains_fusion: ClassVar[bool] = True  # the last look's answer is that of all

    def looks(self, model: Recurrent, batch: Batch, **options: Any) -> RecurrentOutput:
        """Return what the network makes of a batch; options are those of :meth:`Recurrent.forward`."""
        output: RecurrentOutput = model(batch["image"], **options)
        return output

    def score_names(self, num_scales: int) -> list[str]:
        return ["fused"]

    def num_scales_run(self, num_scales: int) -> int:
        return num_scales

    def last_trained_scale(self) -> int:
        return max(self.scales)

    def misfits(self, model: Any) -> list[str]:
        found = super().misfits(model)
        if self.scales:
            found.append(f"'scales' does nothing in a {self.kind} phase, which trains all looks")
        return found

    @property
    def name(self) -> str:
        return f"{self.position + 1:02d}-{self.kind}"


class _OnStored(_Looking):
    """On a trunk that stays as loaded: what it makes of all places of the grid is read once, and steps open no photo."""

    augments: ClassVar[bool] = False
    needs_one_process: ClassVar[bool] = True
    stores: ClassVar[str] = PLACES

    def looks(self, model: Recurrent, batch: Batch, **options: Any) -> RecurrentOutput:
        rows = batch[PLACES].float()
        output: RecurrentOutput = model(rows, stored=rows, **options)
        return output

    def take_up(self, context: PhaseContext, state: Mapping[str, Tensor]) -> None:
        trunk = list(context.model.backbones.state_dict().values())
        context.store(PLACES, self.photos, read_places, depends_on=trunk)

    def misfits(self, model: Any) -> list[str]:
        found = super().misfits(model)
        if not (model.grid and model.has_trunk):
            found.append(
                f"a {self.kind} phase reads all places of model.grid beforehand, by a backbone; set both"
            )
        if model.first == "context":
            found.append(
                f"a {self.kind} phase opens no photo, of which model.first: context needs a small view"
            )
        return found


class Policy(_Looking):
    """Learn to see and where to look, together."""

    kind: Literal["policy"]
    answers: Literal["all", "last"] = Field(
        "all", description="looks whose answers learn the class; last: as published, only the last"
    )
    reward: Literal["each", "last"] = Field(
        "each",
        description="what a decision earns: how probable the looks it leads to hold the true class; last: as published, whether the last is right",
    )
    spread: float = Field(0.2, gt=0.0, le=1.0, description="standard deviation of the places that are tried")
    weight: float = Field(
        0.2,
        ge=0.0,
        description="of the policy's loss; what counts is weight / spread^2, 4 to 10 in copies that work",
    )
    head_lr_factor: float = Field(10.0, gt=0.0, description="all else learns this much faster than the trunk")

    @model_validator(mode="after")
    def _rewards_answers_that_learn(self) -> Policy:
        if self.answers == "last" and self.reward == "each":
            raise ValueError(
                "reward: each is of the answers after every look, which answers: last does not train; set reward: last"
            )
        return self

    def trained(self, model: Recurrent) -> tuple[list[nn.Module], list[nn.Module]]:
        trunks = [cast(Backbone, backbone).trainable() for backbone in model.backbones]
        heads = _heads(model)
        return (trunks, heads) if trunks else (heads, [])

    def losses(
        self, model: Recurrent, batch: Batch, class_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        output = self.looks(model, batch, noise=batch.get("noise"), spread=self.spread)
        answers = output.logits if self.answers == "all" else output.logits[-1:]
        found = policy_losses(output, batch["label"], self.reward)
        each = [
            F.cross_entropy(logits.float(), batch["label"], weight=class_weights, reduction="none")
            for logits in answers
        ]
        found["classification"] = torch.stack(each).mean()
        return found | {"loss": found["classification"] + found["baseline"] + self.weight * found["policy"]}

    def num_noise(self) -> int:
        return 2 * max(self.scales)

    def head_factor(self) -> float:
        return self.head_lr_factor

    def idle_keys(self, num_scales: int) -> dict[str, str]:
        unweighted = {"reward": "a policy's loss and does nothing with weight 0"}
        return super().idle_keys(num_scales) | ({} if self.weight else unweighted)

    def misfits(self, model: Any) -> list[str]:
        found = super().misfits(model)
        if not model.has_trunk and self.head_lr_factor != type(self).model_fields["head_lr_factor"].default:
            found.append("head_lr_factor belongs to backbones and does nothing with backbone patch")
        return found


class FrozenPolicy(_OnStored, Policy):
    """The same on a trunk that stays as loaded."""

    kind: Literal["frozen_policy"]  # type: ignore[assignment]

    def trained(self, model: Recurrent) -> tuple[list[nn.Module], list[nn.Module]]:
        return _heads(model), []

    def head_factor(self) -> float:
        return 1.0

    def idle_keys(self, num_scales: int) -> dict[str, str]:
        return super().idle_keys(num_scales) | {
            "head_lr_factor": "policy and does nothing in a frozen_policy phase, whose trunk does not learn"
        }


class PolicyInit(_Looking):
    """Teach the location network where the photo's evidence lies, as :mod:`racnn.models.recurrent.places` finds it."""

    trains_fusion: ClassVar[bool] = False

    kind: Literal["policy_init"]

    def trained(self, model: Recurrent) -> tuple[list[nn.Module], list[nn.Module]]:
        return [model.location], []

    def losses(
        self, model: Recurrent, batch: Batch, class_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        looks = self.looks(model, batch).looks
        coarse = looks[0].coarse
        assert coarse is not None
        shown = evidence(model, looks[0].features, coarse, batch["label"])
        places, worth = taught_places(shown, len(looks) - 1, side=model.side, grid=model.grid)
        means = torch.stack([cast(Tensor, look.mean) for look in looks[1:]])
        missed = F.smooth_l1_loss(means, torch.stack(places), reduction="none").sum(dim=2)
        return {"loss": (missed * torch.stack(worth)).mean()}

    def last_trained_scale(self) -> int:
        return 0

    def misfits(self, model: Any) -> list[str]:
        found = super().misfits(model)
        if not model.coarse_map:
            found.append(f"a {self.kind} phase reads places of model.coarse_map; set it")
        return found


class FrozenPolicyInit(_OnStored, PolicyInit):
    """The same on a trunk that stays as loaded."""

    kind: Literal["frozen_policy_init"]  # type: ignore[assignment]


def _heads(model: Recurrent) -> list[nn.Module]:
    """Return all of a network but its trunk."""
    return [module for name, module in model.named_children() if name != "backbones"]


@torch.no_grad()
def read_places(
    model: Recurrent,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    keep: Callable[[Tensor, Tensor], None],
    after_batch: Callable[[], None] = lambda: None,
) -> None:
    """Give away what the trunk makes of all places of the grid, [B, P, D] in bfloat16, see :meth:`Recurrent.read_places`.

    Arguments are those of :func:`racnn.models.racnn.cross_fit.read_maps`.
    """

    def read(batch: Batch) -> Batch:
        keep(batch["index"], model.read_places(batch["image"].to(device)).bfloat16().cpu())
        return {"done": batch["index"]}

    model.eval()
    read_rows(read, batches, device=device, after_batch=after_batch)


def policy_losses(output: RecurrentOutput, labels: Tensor, reward: str = "each") -> dict[str, Tensor]:
    """Return the losses of the decisions of a network.

    Args:
        output: What the network made of a batch, at places that were drawn.
        labels: [B].
        reward: 'last', as Mnih et al. have it: for every decision 1 where the last answer is right, else 0. 'each': for the decision
            that sent the eye to look k, the mean over the looks from k on of the probability of the true class. A place cannot change
            earlier answers, so no credit is lost, and a probability says more of one draw than right or wrong.

    Returns:
        ``policy``, the sum over decisions of the log density times (reward - expected), both held, with a minus. Its gradient is an
        estimate, by one draw a photo, of minus that of what is expected: by 'last' of the one reward; by 'each' of each decision's own,
        which is another mean for each, so that in all no single objective is climbed. ``baseline``, the mean squared error of
        what was expected.
    """
    drawn, missed = [], []
    for look, earned in zip(output.looks, _rewards(output, labels, reward), strict=True):
        if look.expected is None:
            continue
        missed.append((look.expected - earned).square())
        if look.log_density is not None:
            drawn.append(look.log_density * (earned - look.expected.detach()))
    zero = output.logits[-1].new_zeros(())
    return {
        "policy": -torch.stack(drawn).sum(dim=0).mean() if drawn else zero,
        "baseline": torch.stack(missed).mean() if missed else zero,
    }


def _rewards(output: RecurrentOutput, labels: Tensor, reward: str) -> Tensor:
    """Return what the decision that led to each look earns, [R, B], held."""
    logits = torch.stack([logits.detach().float() for logits in output.logits])
    if reward == "last":
        return (logits[-1].argmax(dim=1) == labels).float().expand(len(logits), -1)
    probable = logits.softmax(dim=2).gather(2, labels.expand(len(logits), -1)[..., None])[..., 0]
    return torch.stack([probable[number:].mean(dim=0) for number in range(len(probable))])


PHASES: dict[str, type[Phase]] = {
    "policy": Policy,
    "frozen_policy": FrozenPolicy,
    "policy_init": PolicyInit,
    "frozen_policy_init": FrozenPolicyInit,
}


def recipe(view_sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return the default schedule."""
    return [{"kind": "policy", "epochs": 60, "optimizer": "adamw", "lr": 1e-3}]


SCHEDULES = {"recipe": recipe}
