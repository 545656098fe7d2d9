"""What a phase of training is to the engine: one object that holds all that is special about it.

There are two sorts. A :class:`GradientPhase` takes gradient steps: the engine freezes the network but for what ``trained``
names and minimises the ``loss`` of ``losses``. A :class:`FittedPhase` sets its modules in one go. Both are judged by ``scores``
on the validation photos. The engine asks nothing else, and never what kind of phase it has in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field, PrivateAttr, SerializeAsAny, model_validator
from torch import Tensor, nn

from racnn.sections import Fraction, Section

# ``image`` [B, 3, H, W] uint8, ``label`` [B], ``index`` [B] in the split, ``share`` [B] of the batch's loss, ``noise`` [B, num_noise]
# in [0, 1], ``box`` [B, 4] and ``parts`` [B, P, 3]; ``pseudo_box`` [B, 4] where a phase attached one.
Batch = dict[str, Tensor]


class PhaseContext(Protocol):
    """What a phase may use before its first step."""

    model: Any

    def read(
        self, what: str, split: str, call: Callable[..., Any], *, most: int | None = None, **settings: Any
    ) -> Any:
        """Return what a call finds in the photos of a split, all processes together, and show how far it is.

        With ``most`` it is given no more photos than that, evenly taken from all.

        It is called with the model, the batches of this process's photos, unchanged and in order, and the keywords ``device``,
        ``gather`` (joins the rows of all processes), ``after_batch`` (to be called after each batch), and ``settings``.
        """

    def store(
        self,
        name: str,
        split: str,
        call: Callable[..., None],
        *,
        depends_on: Sequence[Tensor],
        **settings: Any,
    ) -> Tensor:
        """Return rows [N, ...] of all photos of a split that a call gives away, kept in a file until a phase has no use for it.

        Until then batches bring their rows along under this name, and neither ``image`` nor ``box`` and ``parts``.
        It is called as by :meth:`read`, with ``keep`` in place of ``gather``, which takes positions of photos [B] and their
        rows [B, ...]. Where a run that was killed had written the file from the same photos and tensors, it is used again.
        """

    def read_stored(
        self, what: str, split: str, read: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return what a call makes of all photos of a split, given their positions [B]; no photo is opened."""

    def num_photos(self, split: str) -> int:
        """Return how many photos a split has."""

    def attach(self, split: str, boxes: Tensor) -> None:
        """Let the photos of a split bring along a pseudo box each, [N, 4] xyxy in the frame of the source."""

    def descriptor_norms(self) -> list[float]:
        """Return the mean length of each scale's descriptors, from some training photos."""

    def descriptors(self, split: str, num_scales: int) -> tuple[list[Tensor], Tensor]:
        """Return the descriptors [N, D] of each scale on the photos of a split, unchanged and in order, and the labels [N]."""

    def answers(self) -> tuple[list[Tensor], Tensor]:
        """Return the logits of every scale on the validation photos, and the labels."""

    def remember(
        self, name: str, depends_on: Sequence[Tensor | None], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return what ``make`` returns, once made for a phase from the file where a run that was killed had written it.

        It is taken from there only if the network, the photos, how they are read, and the tensors that it depends on are the
        same.
        """

    def choose_early_exit(
        self,
        logits: Sequence[Tensor],
        fused: Tensor,
        labels: Tensor,
        *,
        tolerance: float,
        on_validation: bool = False,
    ) -> None:
        """Choose when a photo needs no further look, from answers that are as good as those on photos never seen.

        See :func:`racnn.models.early_exit.calibrate_by_belief`; the choice is stored in the checkpoint.
        """

    def log(self, text: str) -> None:
        """Print a line."""


class Phase(Section):
    """One entry of a schedule: what is trained, by which loss, for how long, and which epoch is kept.

    ``scales`` are counted from 1; empty: all that the kind can train. After :meth:`resolved` they are never empty but for a
    kind that has none. ``keep`` 'last': the last epoch; 'best': the best on validation photos; 'if_better': the best, but
    only if it is better than before the phase.
    """

    no_score_may_fall: ClassVar[bool] = False  # an epoch in which one does is not better
    names_regions: ClassVar[bool] = False  # ``scales`` name regions, of which there is one fewer
    proposes: ClassVar[bool] = False  # is judged by what the last scale that it runs proposes
    trains_fusion: ClassVar[bool] = False
    answers_out_of_fold: ClassVar[bool] = False  # and so needs a trunk that has not learnt its photos
    needs_one_process: ClassVar[bool] = False
    fits_levels: ClassVar[bool] = False  # the heads of coarser levels of the classes
    stores: ClassVar[str] = ""  # name of rows that stay in their file where the next phase has the same

    kind: str
    scales: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="empty: all that the kind can train"
    )
    photos: Literal["train", "held_out"] = Field(
        "train", description="held_out: those of data.held_out_fraction, which other phases do not see"
    )
    keep: Literal["last", "best", "if_better"] = Field(
        "last", description="last epoch; best epoch on validation; best only if better than before the phase"
    )
    _position: int = PrivateAttr(0)

    @model_validator(mode="after")
    def _scales_fit_the_kind(self) -> Self:
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales {list(self.scales)} names a scale twice")
        return self

    # --- what a kind of phase says of itself

    def trained(self, model: Any) -> tuple[list[nn.Module], list[nn.Module]]:
        """Return the modules to train: those at ``lr``, and heads at ``lr`` times :meth:`head_factor`; others are frozen."""
        raise AssertionError(f"{type(self).__name__} does not say what it trains")

    def fitted(self, model: Any) -> list[nn.Module]:
        """Return the modules that :meth:`GradientPhase.between_epochs` sets, which no step changes."""
        return []

    def score_names(self, num_scales: int) -> list[str]:
        """Return the names of :meth:`scores`, where so many scales are looked at."""
        raise AssertionError(f"{type(self).__name__} is judged by nothing")

    def scores(self, report: Mapping[str, Any], loss: float | None = None) -> dict[str, float]:
        """Return what epochs are compared by, from the report on the validation photos; larger is better.

        It is the mean log-probability of the true class at the scales of :meth:`score_names`: steadier than top-1 on few
        photos. The difference of two scales' probabilities, which the ranking loss looks at, also rises when the coarser
        scale falls and is no criterion.

        Args:
            report: From :func:`racnn.evaluation.report.evaluation_report`.
            loss: From :meth:`validation_loss`.
        """
        log_prob = report["log_prob"]
        num_scales = sum(name.startswith("scale_") for name in log_prob)
        return {name: log_prob[name] for name in self.score_names(num_scales)}

    def prepare(self, context: PhaseContext) -> None:
        """Find out, once before the phase and again when it is taken up, what its photos are to bring along."""

    def begin(self, context: PhaseContext) -> None:
        """Change the network once, before the first step."""

    def validation_loss(self, model: Any, predictions: Any) -> float | None:
        """Return a loss on the validation photos that :meth:`scores` needs, if it needs one."""
        return None

    def num_epochs(self) -> int:
        """Return how many times the photos are gone through at most; after each the network is validated."""
        return 1

    def gives_up(self, stale: int) -> bool:
        """Return whether to end after so many epochs without a better one."""
        return False

    def num_noise(self) -> int:
        """Return how many uniform random numbers a photo finds in ``batch['noise']``."""
        return 0

    def num_scales_run(self, num_scales: int) -> int:
        """Return how many scales a training step has to run."""
        return max(self.scales)

    def enlargements(self) -> list[tuple[int, float]]:
        """Return scales whose views the phase enlarges, each with the factor."""
        return []

    def taught_regions(self) -> tuple[int, ...]:
        """Return the regions that the phase teaches where to look."""
        return ()

    def last_trained_scale(self) -> int:
        """Return the finest scale whose classifier the phase trains, 0 for none."""
        return 0

    def idle_keys(self, num_scales: int) -> dict[str, str]:
        """Return the keys that do nothing in this phase, each with what it belongs to."""
        return {}

    def misfits(self, model: Any) -> list[str]:
        """Return what of the phase does not fit the ``model`` section of the configuration, in words."""
        limit = model.num_scales - self.names_regions
        if limit == 0:
            return [f"a {self.kind} phase needs at least two model.view_sizes"]
        if getattr(model, "level_heads", ()) and not self.fits_levels:
            return [f"a {self.kind} phase knows nothing of model.level_heads; a looks phase fits them"]
        return [
            f"a {self.kind} phase names scale {scale}, but model.view_sizes has {model.num_scales} scales"
            for scale in self.named_scales()
            if scale > limit
        ]

    def named_scales(self) -> tuple[int, ...]:
        """Return every scale that the configuration names."""
        return self.scales

    # --- what the engine makes of it

    def resolved(self, num_scales: int, position: int = 0) -> Self:
        """Return the phase as it is run: its scales filled in, and how many phases were run before it."""
        every = tuple(range(1, num_scales - self.names_regions + 1))
        phase = self.model_copy(update={"scales": self.scales or self.default_scales(every)})
        phase._position = position
        return phase

    def default_scales(self, every: tuple[int, ...]) -> tuple[int, ...]:
        """Return the scales that are meant where none are named."""
        return every

    @property
    def position(self) -> int:
        """How many phases were run before."""
        return self._position

    @property
    def name(self) -> str:
        """A short name for logs, such as ``03-classification_2``."""
        return "_".join([f"{self._position + 1:02d}-{self.kind}", *map(str, self.scales)])


class GradientPhase(Phase):
    """A phase that minimises a loss by gradient steps."""

    augments: ClassVar[bool] = True  # its photos are changed at random, by ``data.augment``
    replaces_best: ClassVar[bool] = False  # where it is kept, ``best.pt`` is its network, whatever top-1 says

    epochs: int = Field(..., ge=1)
    passes: int = Field(
        1, ge=1, description="how often an epoch goes through the photos before it is validated"
    )
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(..., gt=0.0)
    momentum: Fraction = 0.9
    weight_decay: float = Field(1e-4, ge=0.0)
    warmup: float = Field(0.05, ge=0.0, lt=1.0, description="share of the phase with rising learning rate")
    clip_grad: float = Field(0.0, ge=0.0, description="largest gradient norm; 0: no clipping")
    patience: int = Field(0, ge=0, description="stop after so many epochs without a better one; 0: never")

    def losses(self, model: Any, batch: Batch, class_weights: Tensor | None = None) -> dict[str, Tensor]:
        """Return named losses of a batch; the one called ``loss`` is minimised.

        Args:
            model: The network.
            batch: From :class:`racnn.data.dataset.PhotoDataset`.
            class_weights: [C], or None; a loss that knows no classes leaves them alone.
        """
        raise AssertionError(f"{type(self).__name__} has no loss")

    def between_epochs(self, context: PhaseContext, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Set what no step learns, before the first epoch and after each one.

        Args:
            context: What the phase may use.
            state: What it returned the last time; empty before the first epoch.

        Returns:
            What the steps of the next epoch need beside the network and the batch, see :meth:`take_up`; a checkpoint keeps it.
        """
        return {}

    def finish(self, context: PhaseContext) -> None:
        """Set what no step learns, once after the last epoch, where the phase is kept."""

    def take_up(self, context: PhaseContext, state: Mapping[str, Tensor]) -> None:
        """Use what :meth:`between_epochs` returned, now or before the run was stopped."""

    def faults_of_state(self, state: Mapping[str, Tensor], model: Any) -> list[str]:
        """Return why the steps could not use a stored state with a network, in words."""
        return [f"progress.state holds {name}, which phase {self.name} has no use for" for name in state]

    def head_factor(self) -> float:
        """Return how much faster heads learn than trunks."""
        return 1.0

    def holds_norm(self) -> bool:
        """Return whether batch norm goes on with the statistics that it has."""
        return False

    def num_epochs(self) -> int:
        return self.epochs

    def gives_up(self, stale: int) -> bool:
        return 0 < self.patience <= stale

    def idle_keys(self, num_scales: int) -> dict[str, str]:
        sgd_only = {"momentum": f"sgd and does nothing with {self.optimizer}"}
        return {} if self.optimizer == "sgd" else sgd_only


class FittedPhase(Phase):
    """A phase that sets its modules in one go, such as linear heads on the descriptors of a frozen trunk."""

    def fit(self, context: PhaseContext) -> None:
        """Set the modules of :meth:`trained` in one go; the same call gives the same bits."""
        raise AssertionError(f"{type(self).__name__} does not say how it is fitted")

    def num_readings(self, num_scales: int) -> int:
        """Return how many views of each photo are looked at for that."""
        return num_scales


class AlternationConfig(Section):
    """Phases repeated in turn until none of them is kept, the paper's "until neither changes", or ``rounds`` are over."""

    alternate: tuple[SerializeAsAny[Phase], ...] = Field(..., min_length=1)
    rounds: int = Field(1, ge=1)


def alternate(schedule: Sequence[Phase | AlternationConfig], num_scales: int) -> Generator[Phase, bool, None]:
    """Yield the phases in the order of training; send back whether the phase just run changed the network."""
    position = 0
    for entry in schedule:
        phases = entry.alternate if isinstance(entry, AlternationConfig) else (entry,)
        rounds = entry.rounds if isinstance(entry, AlternationConfig) else 1
        for _ in range(rounds):
            changed = False
            for phase in phases:
                changed |= yield phase.resolved(num_scales, position)
                position += 1
            if not changed:
                break


def upcoming(
    schedule: Sequence[Phase | AlternationConfig], num_scales: int, outcomes: Sequence[bool]
) -> Phase | None:
    """Return the phase that follows after phases with these outcomes, or None when training is over."""
    phases = alternate(schedule, num_scales)
    phase = next(phases)
    try:
        for changed in outcomes:
            phase = phases.send(changed)
    except StopIteration:
        return None
    return phase
