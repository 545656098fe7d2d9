"""A step is a step, however a batch is taken apart, and none is taken where the numbers are not finite."""

import pytest
import torch

from racnn.engine.evaluator import predict
from racnn.engine.loop import (
    EpochState,
    NonFiniteError,
    build_optimizer,
    train_one_epoch,
    train_only,
)
from racnn.errors import TrainingError
from racnn.models import RACNN
from racnn.models.racnn import make_phase
from racnn.models.racnn.phases import Classification
from racnn.models.racnn.pseudo_boxes import read_boxes

CPU = torch.device("cpu")
NUM = 5
PHASES = [
    ("classification", (1, 2), {}),
    ("apn_init", (1,), {}),
    ("ranking", (1, 2), {"gradient": "exact", "margin": 2.0}),
    ("ranking", (1,), {"gradient": "smoothed", "margin": 2.0}),
    ("localise", (2,), {"label_smoothing": 0.1}),
    ("fusion", (), {}),
]


def make():
    torch.manual_seed(0)
    model = RACNN(num_classes=3, backbone="vgg11", view_sizes=(32, 32, 32))  # no batch norm
    for apn in model.apns:
        torch.nn.init.normal_(apn.out.weight, std=0.1)
    return model


def phase_of(kind, scales, **changes):
    return make_phase(kind=kind, scales=scales, epochs=1, lr=0.01, **changes)


def batch(phase):
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randint(0, 256, (NUM, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "label": torch.arange(NUM) % 3,
        "index": torch.arange(NUM) + 10,
        "share": torch.full((NUM,), 1.0 / NUM, dtype=torch.float64),
        "pseudo_box": torch.tensor([-0.6, -0.2, 0.3, 0.4]).repeat(NUM, 1),
        "noise": torch.rand(NUM, phase.num_noise(), generator=generator),
    }


def one_step(phase, *, micro_batch=0, class_weights=None, said=None):
    """Return the losses and the gradients of one step."""
    model = make()
    train_only(model, phase)
    optimizer = build_optimizer(model, phase)
    state = EpochState(device=CPU, class_weights=class_weights, micro_batch=micro_batch)
    records = [step.losses for step in train_one_epoch(model, [batch(phase)], phase, optimizer, state)]
    (record,) = records
    if said is not None:
        said += state.messages
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return record, gradients


@pytest.mark.parametrize(("kind", "scales", "changes"), PHASES)
def test_a_batch_taken_in_parts_has_the_same_losses_and_gradients(kind, scales, changes):
    phase = phase_of(kind, scales, **changes)
    weights = torch.tensor([0.5, 1.0, 1.5]) if kind in ("classification", "fusion") else None
    whole, gradients = one_step(phase, class_weights=weights)
    parts, others = one_step(phase, class_weights=weights, micro_batch=2)  # 2, 2 and 1
    assert parts == pytest.approx(whole, rel=0.01)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().sum() > 0, name
        # convolutions of other batch sizes round otherwise, which tips a ReLU here and there
        assert (others[name] - gradient).norm() <= 0.03 * gradient.norm(), name


class TestOutOfMemory:
    def small_gpu(self, monkeypatch, room):
        plain, sizes = Classification.losses, []

        def step(phase, model, batch, class_weights=None):
            sizes.append(len(batch["label"]))
            if sizes[-1] > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
            return plain(phase, model, batch, class_weights)

        monkeypatch.setattr(Classification, "losses", step)
        return sizes

    def test_the_batch_is_halved_until_it_fits_with_the_same_gradient(self, monkeypatch):
        phase = phase_of("classification", (1,))
        whole, gradients = one_step(phase)
        sizes, said = self.small_gpu(monkeypatch, room=2), []
        halved, others = one_step(phase, said=said)
        assert sizes == [5, 3, 2, 2, 1]
        assert [line for line in said if "no memory for" in line] == said
        assert "going on with 3" in said[0]
        assert "going on with 2" in said[1]
        assert halved == pytest.approx(whole, rel=1e-4)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-6)

    def test_what_fits_is_remembered_for_the_next_batch(self, monkeypatch):
        phase, model = phase_of("classification", (1,)), make()
        sizes = self.small_gpu(monkeypatch, room=3)
        train_only(model, phase)
        state = EpochState(device=CPU, length=2)
        list(train_one_epoch(model, [batch(phase)] * 2, phase, build_optimizer(model, phase), state))
        assert sizes == [5, 3, 2, 3, 2]

    def test_a_single_photo_that_does_not_fit_ends_the_run_with_advice(self, monkeypatch):
        self.small_gpu(monkeypatch, room=0)
        with pytest.raises(TrainingError, match=r"single photo.*view_sizes"):
            one_step(phase_of("classification", (1,)))


class TestOutOfMemoryWithoutGradient:
    """Validation, evaluation and the reading of pseudo_boxes."""

    def small_gpu(self, monkeypatch, model, room):
        plain, sizes = model.forward, []

        def forward(images, **rest):
            sizes.append(len(images))
            if len(images) > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
            return plain(images, **rest)

        monkeypatch.setattr(model, "forward", forward)
        return sizes

    @pytest.fixture
    def batches(self):
        full = batch(phase_of("classification", (1,)))
        return [full | {"box": torch.rand(NUM, 4), "parts": torch.rand(NUM, 2, 2)}] * 2

    def test_answers_are_those_of_whole_batches(self, monkeypatch, batches):
        model = make()
        whole = predict(model, batches, device=CPU)
        sizes = self.small_gpu(monkeypatch, model, room=3)
        halved = predict(model, batches, device=CPU)
        assert sizes == [5, 3, 2, 3, 2]
        for left, right in zip(whole.logits + whole.regions, halved.logits + halved.regions, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)
        assert torch.equal(whole.labels, halved.labels)
        assert torch.equal(whole.boxes, halved.boxes)

    def test_pseudo_boxes_are_those_of_whole_batches(self, monkeypatch, batches):
        model, phase = make(), phase_of("apn_init", (1,))
        whole = read_boxes(model, batches, 1, phase, device=CPU)
        sizes = self.small_gpu(monkeypatch, model, room=3)
        torch.testing.assert_close(whole, read_boxes(model, batches, 1, phase, device=CPU))
        assert sizes == [5, 3, 2, 3, 2]

    def test_a_single_photo_that_does_not_fit_is_told(self, monkeypatch, batches):
        model = make()
        self.small_gpu(monkeypatch, model, room=0)
        with pytest.raises(TrainingError, match=r"single photo.*--device"):
            predict(model, batches, device=CPU)


def test_a_step_that_is_not_finite_is_not_taken_and_names_losses_and_photos():
    phase, model = phase_of("classification", (1,)), make()
    train_only(model, phase)
    torch.nn.init.constant_(model.classifiers[0].bias, float("nan"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"classification_1 = nan.*not finite") as caught:
        list(train_one_epoch(model, [batch(phase)], phase, build_optimizer(model, phase), EpochState(CPU)))
    assert caught.value.index == [10, 11, 12, 13, 14]
    assert {"classification_1", "loss", "grad_norm"} <= caught.value.values.keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_losses_of_the_log_are_named_as_the_loop_sees_them():
    record, _ = one_step(phase_of("classification", (1, 2)))
    assert set(record) == {"classification_1", "classification_2", "loss", "grad_norm"}
