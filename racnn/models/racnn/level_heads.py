"""Heads of coarser levels, such as genus and family, beside those of the classes, and one answer that all of them agree with.

Wang, Shen, Shao, Zhang, Xue, Zhang, "Multiple Granularity Descriptors for Fine-Grained Categorization", ICCV 2015: each level has its own
network and its own regions, and the descriptors of all are joined. Here the levels share the trunks of the looks; a level's own
region is where the whole photo speaks for its group. They join descriptors and answer with classes alone; here each level answers
too, and the answers are made consistent: what a family gets is what its species get together.

Convention
    A group is named by the number of the first class that is in it, so that a head of any level has as many outputs as there are
    classes; those that name no group are never answered. Levels are ordered from the finest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

NONE = -1e4  # logit of an output that names no group


class LevelHeads(nn.Module):
    """The heads of coarser levels.

    Args:
        channels: Channels of a look's descriptor.
        num_scales: Number of looks.
        num_classes: C.
        names: Names of the L levels.

    Attributes:
        groups: [L, C] int64, the group of each class; each class by itself until :meth:`set_groups`.
        trust: [L], how much a level's own head counts beside the sum over its classes, in [0, 1].
        whole: Heads that read the descriptor of the first look; they say where a level's own region is.
        joined: Heads that read the joined descriptors of all looks.
    """

    groups: Tensor
    trust: Tensor

    def __init__(self, channels: int, num_scales: int, num_classes: int, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.whole = nn.ModuleList(nn.Linear(channels, num_classes) for _ in names)
        self.joined = nn.ModuleList(nn.Linear(channels * num_scales, num_classes) for _ in names)
        self.register_buffer("groups", torch.arange(num_classes).repeat(len(names), 1))
        self.register_buffer("trust", torch.zeros(len(names)))

    @torch.no_grad()
    def set_groups(self, groups: Sequence[Sequence[str]]) -> None:
        """Say which group each class is in, by level."""
        for level, names in enumerate(groups):
            first = {name: number for number, name in reversed(list(enumerate(names)))}
            self.groups[level] = torch.tensor([first[name] for name in names])

    def best_groups(self, level: int, descriptor: Tensor) -> Tensor:
        """Return the most probable groups [B] of a level by the descriptor [B, D] of the first look."""
        return self._known(level, self.whole[level](descriptor)).argmax(dim=1)

    def consistent(self, fused: Tensor, joined: Tensor) -> Tensor:
        """Return log-probabilities [B, C] of the classes that agree with the heads of all levels.

        Level by level, the finest first, the classes of each group are scaled by one factor, so that together they are as probable as
        the geometric mixture, by ``trust``, of what they were and what the level's head says. A coarser level leaves the shares
        within its groups alone, so that in the end p(class) = p(family) p(genus | family) p(class | genus).

        Args:
            fused: [B, C], logits of the classes by all looks together.
            joined: [B, S * D], what the heads read.
        """
        return agree(fused, self.answers(joined), self.groups, self.trust)

    def answers(self, joined: Tensor) -> list[Tensor]:
        """Return the logits [B, C] of each level's own head, by group."""
        return [self._known(level, head(joined)) for level, head in enumerate(self.joined)]

    def _known(self, level: int, logits: Tensor) -> Tensor:
        classes = torch.arange(logits.shape[1], device=logits.device)
        is_group = (self.groups[level][None] == classes[:, None]).any(dim=1)
        return torch.where(is_group, logits, NONE)


def agree(fused: Tensor, answers: Sequence[Tensor], groups: Tensor, trust: Tensor) -> Tensor:
    """Return :meth:`LevelHeads.consistent` of the answers [B, C] of each level."""
    found = fused.float().log_softmax(dim=1)
    for level, logits in enumerate(answers):
        own = groups[level]
        members = (own[:, None] == torch.arange(len(own), device=own.device)).float()  # [C, group]
        together = (found.exp() @ members).clamp(min=1e-30).log()
        said = logits.float().log_softmax(dim=1)
        found = (found + trust[level] * (said - together).index_select(1, own)).log_softmax(dim=1)
    return found
