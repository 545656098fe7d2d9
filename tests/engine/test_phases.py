"""Phases come in the order of the schedule, and an alternation ends when nothing changes any more."""

import pytest

from racnn.config import load_config, parse_config
from racnn.models.phase import alternate, upcoming


def phase(kind, **changes):
    return {"kind": kind, "epochs": 1, "lr": 0.1, **changes}


def config_of(*schedule, num_scales=3):
    return parse_config(
        {"model": {"view_sizes": [32] * num_scales}, "schedule": list(schedule)}, origin="test"
    )


def run(config, outcomes):
    """Walk through a schedule, answering with outcomes and then with True; return the phases."""
    generator, answers, phases = alternate(config.schedule, config.model.num_scales), iter(outcomes), []
    try:
        phases.append(next(generator))
        while True:
            phases.append(generator.send(next(answers, True)))
    except StopIteration:
        return phases


ALTERNATION = config_of(
    phase("classification", scales=[1]),
    {"alternate": [phase("ranking"), phase("classification")], "rounds": 3},
    phase("fusion"),
)


def kinds(phases):
    return "".join(
        {"classification": "c", "apn_init": "a", "ranking": "r", "fusion": "f"}[p.kind] for p in phases
    )


@pytest.mark.parametrize(
    ("outcomes", "order"),
    [
        ([True] * 20, "crcrcrcf"),  # ends with its rounds
        ([True, False, False], "crcf"),  # a round in which nothing changed
        ([False, False, False], "crcf"),  # what changed before the alternation does not count
        ([True, True, False, False, False], "crcrcf"),  # the first of a round changed
        ([True, False, True, False, False], "crcrcf"),  # the second did
        ([True, False, True, True, False, False, False], "crcrcrcf"),
    ],
)
def test_an_alternation_goes_on_while_a_round_changes_something(outcomes, order):
    assert kinds(run(ALTERNATION, outcomes)) == order


def test_a_phase_outside_an_alternation_runs_once_whether_or_not_it_changed_anything():
    config = config_of(
        phase("classification"), phase("apn_init", scales=[1]), phase("ranking"), phase("fusion")
    )
    assert kinds(run(config, [True] * 4)) == kinds(run(config, [False] * 4)) == "carf"


def test_phases_know_how_many_ran_before():
    assert [p.position for p in run(ALTERNATION, [])] == list(range(8))


@pytest.mark.parametrize(
    "outcomes", [[True] * 8, [False] * 8, [True, False, True, True, False, False, False, True]]
)
def test_upcoming_replays_the_walk(outcomes):
    phases = run(ALTERNATION, outcomes)
    replayed = [upcoming(ALTERNATION.schedule, 3, outcomes[:done]) for done in range(len(phases))]
    assert replayed == phases
    assert upcoming(ALTERNATION.schedule, 3, outcomes[: len(phases)]) is None


@pytest.mark.parametrize(
    ("kind", "scales"),
    [("classification", (1, 2, 3)), ("ranking", (1, 2)), ("fusion", ())],
)
def test_a_phase_without_scales_trains_all_there_are(kind, scales):
    *_, resolved = run(config_of(phase("classification"), phase(kind)), [])
    assert resolved.scales == scales


def test_the_only_apn_needs_no_name():
    (resolved,) = run(config_of(phase("apn_init"), num_scales=2), [])
    assert resolved.scales == (1,)


@pytest.mark.parametrize("kind", ["classification", "apn_init", "ranking"])
def test_a_phase_with_scales_keeps_them(kind):
    (resolved,) = run(config_of(phase(kind, scales=[2])), [])
    assert resolved.scales == (2,)


@pytest.mark.parametrize(
    ("kind", "scales", "count"),
    [("classification", [1, 2], 2), ("apn_init", [2], 2), ("ranking", [1, 2], 3), ("fusion", [], 4)],
)
def test_a_step_runs_no_more_scales_than_it_needs(kind, scales, count):
    *_, resolved = run(config_of(phase("classification"), phase(kind, scales=scales), num_scales=4), [])
    assert resolved.num_scales_run(4) == count


@pytest.mark.parametrize("name", ["recipe", "paper"])
def test_names_are_unique_and_sort_in_the_order_of_running(name):
    names = [p.name for p in run(load_config(None, [f"schedule={name}"]), [])]
    assert len(set(names)) == len(names)
    assert sorted(names) == names


def test_a_name_tells_position_kind_and_scales():
    (resolved,) = run(config_of(phase("ranking", scales=[1, 2])), [])
    assert resolved.name == "01-ranking_1_2"
    assert resolved.model_copy(update={"scales": (2,)}).resolved(3, 11).name == "12-ranking_2"


@pytest.mark.parametrize(
    ("kind", "scales", "changes", "count"),
    [
        ("classification", [1], {}, 0),  # sees the whole photo
        ("classification", [2], {}, 3),
        ("classification", [1, 3], {}, 6),
        ("classification", [3], {"jitter": 0.0}, 0),
        ("ranking", [1, 2], {"gradient": "exact"}, 0),
        ("ranking", [1, 2], {"gradient": "smoothed", "pairs": 5}, 30),
        ("ranking", [2], {"gradient": "smoothed", "pairs": 5}, 15),
        ("apn_init", [1], {}, 0),
        ("fusion", [], {}, 0),
    ],
)
def test_a_photo_brings_as_much_noise_as_the_step_draws(kind, scales, changes, count):
    *_, resolved = run(config_of(phase("classification"), phase(kind, scales=scales, **changes)), [])
    assert resolved.num_noise() == count
