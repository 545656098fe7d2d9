"""A phase moves exactly what it names, and nothing else, batch norm statistics included."""

import pytest
import torch

from racnn.engine.loop import build_optimizer, train_only
from racnn.models import RACNN
from racnn.models.racnn import make_phase

NUM_CLASSES = 5


@pytest.fixture(scope="module")
def states():
    """Weights of a network whose APNs do not start at a point without gradient; one for each kind of sharing."""
    made = {}
    for shared in (False, True):
        torch.manual_seed(0)
        model = make(shared)
        for apn in model.apns:
            torch.nn.init.normal_(apn.out.weight, std=0.1)
        made[shared] = {key: value.clone() for key, value in model.state_dict().items()}
    return made


def make(shared=False):
    return RACNN(num_classes=NUM_CLASSES, backbone="tiny", view_sizes=(32, 32, 32), shared_backbone=shared)


def batch(size=6, side=40):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8)
    pseudo_box = torch.tensor([-0.6, -0.2, 0.3, 0.4]).repeat(size, 1)
    return {"image": images, "label": torch.arange(size) % NUM_CLASSES, "pseudo_box": pseudo_box}


def phase_of(kind, scales=(), **changes):
    always = {"margin": 2.0} if kind == "ranking" else {}  # no pair is ranked so well that it teaches nothing
    return make_phase(**{"kind": kind, "epochs": 1, "lr": 0.5, "scales": scales} | always | changes)


def step(model, phase):
    """Take one optimizer step of a phase and return the losses."""
    train_only(model, phase)
    optimizer = build_optimizer(model, phase)
    noise = torch.rand(6, phase.num_noise(), generator=torch.Generator().manual_seed(3))
    losses = phase.losses(model, batch() | {"noise": noise})
    losses["loss"].backward()
    optimizer.step()
    return losses


def owned(state, *prefixes):
    return {key for key in state if key.startswith(prefixes)}


MOVES = [
    ("classification", (1,), ("backbones.0.", "classifiers.0.")),
    ("classification", (2,), ("backbones.1.", "classifiers.1.")),
    ("classification", (1, 3), ("backbones.0.", "classifiers.0.", "backbones.2.", "classifiers.2.")),
    ("classification", (1, 2, 3), ("backbones.", "classifiers.")),
    ("apn_init", (1,), ("apns.0.",)),
    ("apn_init", (2,), ("apns.1.",)),
    ("ranking", (1,), ("apns.0.",)),
    ("ranking", (2,), ("apns.1.",)),
    ("ranking", (1, 2), ("apns.",)),
    ("localise", (1,), ("apns.0.",)),
    ("localise", (1, 2), ("apns.",)),
    ("fusion", (), ("fusion.",)),
]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("kind", "scales", "prefixes"), MOVES)
def test_a_phase_moves_exactly_what_it_names(kind, scales, prefixes, optimizer, states):
    model = make()
    model.load_state_dict(states[False])
    step(model, phase_of(kind, scales, optimizer=optimizer, weight_decay=0.1))
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, states[False][key])}
    assert moved == owned(states[False], *prefixes)


@pytest.mark.parametrize("scale", [2, 3])
def test_a_finer_scale_alone_learns_on_the_places_that_photos_bring_along(scale, states):
    """The loss is that of the whole recursion where the places are what it proposes; no coarser scale is run for it."""
    model = make()
    model.load_state_dict(states[False])
    phase = phase_of("classification", (scale,), jitter=0.0)
    train_only(model, phase)
    photos = batch()
    pseudo_box = photos.pop("pseudo_box")
    with torch.no_grad():
        place = model(photos["image"], num_scales=scale - 1).scales[-1].next_region
    corners = torch.cat([place[:, :2] - place[:, 2:], place[:, :2] + place[:, 2:]], dim=1)
    run = []
    for number, backbone in enumerate(model.backbones, 1):
        backbone.register_forward_pre_hook(lambda *_, number=number: run.append(number))
    recursion = phase.losses(model, photos)
    assert run == list(range(1, scale + 1))
    run.clear()
    alone = phase.losses(model, photos | {"pseudo_box": corners})
    assert run == [scale]
    assert alone.keys() == recursion.keys() == {f"classification_{scale}", "loss"}
    torch.testing.assert_close(alone["loss"], recursion["loss"], rtol=1e-4, atol=0)
    elsewhere = phase.losses(model, photos | {"pseudo_box": pseudo_box})
    assert not torch.allclose(elsewhere["loss"], alone["loss"], rtol=1e-3)


def test_the_places_that_photos_bring_along_are_shaken(states):
    model = make()
    model.load_state_dict(states[False])
    losses = []
    for jitter, noise in ((0.0, 0.0), (1.0, 0.5), (1.0, 1.0)):  # noise of 0.5 is none
        phase = phase_of("classification", (2,), jitter=jitter)
        train_only(model, phase)
        given = batch() | {"noise": torch.full((6, 3), noise)}
        losses.append(float(phase.losses(model, given)["loss"].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[2] != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("kind", ["apn_init", "ranking", "fusion"])
def test_frozen_trunks_look_the_same_way_as_in_evaluation(kind, states):
    model = make()
    model.load_state_dict(states[False])
    train_only(model, phase_of(kind, {"apn_init": (2,), "ranking": (1, 2), "fusion": ()}[kind]))
    assert model.training
    assert not any(module.training for module in model.backbones.modules())
    assert not any(p.requires_grad for p in (*model.backbones.parameters(), *model.classifiers.parameters()))


@pytest.mark.parametrize("shared", [False, True])
def test_frozen_stages_stay_as_loaded(shared, states):
    model = RACNN(
        num_classes=NUM_CLASSES,
        backbone="tiny",
        view_sizes=(32, 32, 32),
        shared_backbone=shared,
        frozen_stages=1,
    )
    model.load_state_dict(states[shared])
    step(model, phase_of("classification", (1, 2, 3)))
    layers = model.backbones[0].features
    (pool, _later) = [i for i, layer in enumerate(layers) if isinstance(layer, torch.nn.MaxPool2d)]
    for key, value in model.state_dict().items():
        if key.startswith("backbones."):
            frozen = int(key.split(".")[3]) < pool
            assert torch.equal(value, states[shared][key]) == frozen, key


def test_a_shared_trunk_is_given_to_the_optimizer_once_and_moves(states):
    model = make(shared=True)
    model.load_state_dict(states[True])
    phase = phase_of("classification", (1, 2))
    step(model, phase)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, states[True][key])}
    assert moved == owned(states[True], "backbones.", "classifiers.0.", "classifiers.1.")
    trunk = build_optimizer(model, phase).param_groups[0]["params"]
    assert len(trunk) == len(list(model.backbones[0].parameters()))


@pytest.mark.parametrize(("kind", "scales", "prefixes"), MOVES)
def test_the_loss_is_the_sum_of_the_named_losses(kind, scales, prefixes, states):
    model = make()
    model.load_state_dict(states[False])
    losses = {name: value.item() for name, value in step(model, phase_of(kind, scales)).items()}
    terms = [value for name, value in losses.items() if name.rpartition("_")[0] == kind or name == kind]
    assert len(terms) == max(len(scales), 1), losses
    assert losses["loss"] == pytest.approx(sum(terms))


def test_heads_learn_faster_than_trunks_by_the_factor():
    trunk, head = build_optimizer(
        make(), phase_of("classification", (1, 2), lr=0.01, head_lr_factor=7.0)
    ).param_groups
    assert (trunk["lr"], trunk["base_lr"]) == (0.01, 0.01)
    assert head["lr"] == head["base_lr"] == pytest.approx(0.07)
    assert len(head["params"]) == 4  # two classifiers, weight and bias


@pytest.mark.parametrize(("kind", "scales"), [("apn_init", (2,)), ("ranking", (1,)), ("fusion", ())])
def test_what_has_no_heads_has_one_group_at_the_plain_rate(kind, scales):
    (group,) = build_optimizer(make(), phase_of(kind, scales, lr=0.01)).param_groups
    assert group["lr"] == group["base_lr"] == 0.01


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_is_the_one_asked_for(name, kind):
    more = {"momentum": 0.8} if name == "sgd" else {}
    optimizer = build_optimizer(make(), phase_of("fusion", optimizer=name, weight_decay=0.03, **more))
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.03
    assert group.get("momentum", 0.8) == 0.8


def test_regions_are_shaken_in_training_and_not_in_validation(states):
    model = make()
    model.load_state_dict(states[False])
    phase = phase_of("classification", (2,), jitter=1.0)
    train_only(model, phase)

    def loss(seed):
        noise = torch.rand(6, 3, generator=torch.Generator().manual_seed(seed))
        return phase.losses(model, batch() | {"noise": noise})["loss"].item()

    assert loss(0) == loss(0)
    assert loss(0) != loss(1)
    model.eval()
    assert loss(0) == loss(1)


@pytest.mark.parametrize(("kind", "scales"), [("classification", (1, 2)), ("fusion", ())])
def test_class_weights_change_the_loss_of_the_kinds_that_know_classes(kind, scales, states):
    model = make()
    model.load_state_dict(states[False])
    phase = phase_of(kind, scales, **({"label_smoothing": 0.0, "jitter": 0.0} if scales else {}))
    train_only(model, phase)
    model.eval()
    weights = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])  # only photos of the first class count
    some = batch(size=5)
    first = {key: value[:1] for key, value in some.items()}
    weighed = phase.losses(model, some, weights)["loss"]
    torch.testing.assert_close(len(some["label"]) * weighed, phase.losses(model, first)["loss"])
