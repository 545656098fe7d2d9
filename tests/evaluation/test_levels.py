"""Answers at the level that is sure: sums, the trade, and what is refused."""

import json
import math

import pytest
import torch

from racnn.data.groups import Levels
from racnn.errors import DataError
from racnn.evaluation.hedge import ANY, Caution, sure_answers
from racnn.evaluation.levels import (
    WEIGHTS,
    calibrate_caution,
    caution_file,
    caution_json,
    format_levels,
    levels_report,
    load_caution,
)

LEVELS = Levels(
    ("species", "genus", "family"),
    (
        ("herring gull", "black gull", "arctic tern", "sooty owl"),
        ("gulls", "gulls", "terns", "owls"),
        ("laridae", "laridae", "laridae", "tytonidae"),
    ),
)


def caution(weight, network="0123", chosen_by="validation", wanted=0.97):
    return Caution(network, LEVELS.names, LEVELS.groups, weight, wanted, chosen_by)


def log_probs(*rows):
    return torch.tensor(rows).log()


SURE, TORN = [0.97, 0.01, 0.01, 0.01], [0.48, 0.47, 0.04, 0.01]
FAMILY, LOST = [0.3, 0.35, 0.34, 0.01], [0.25, 0.25, 0.25, 0.25]


def test_a_group_is_named_where_its_classes_are_torn():
    found = sure_answers(caution(3.0), log_probs(SURE, TORN, FAMILY, LOST).exp().numpy())
    assert [(each.level, each.name) for each in found] == [
        ("species", "herring gull"),
        ("genus", "gulls"),
        ("family", "laridae"),
        ("unsure", "unsure"),
    ]
    assert [each.probability for each in found] == pytest.approx([0.97, 0.95, 0.99, 1.0])


def test_without_caution_it_names_what_tells_most_and_with_all_of_it_nothing():
    every = log_probs(SURE, TORN, FAMILY, LOST)
    assert sure_answers(caution(0.0), every.exp().numpy())[0].level == "species"
    certain = torch.tensor([[0.0, -200.0, -200.0, -200.0]])
    for probabilities in (every, certain):
        assert {each.level for each in sure_answers(caution(None), probabilities.exp().numpy())} == {"unsure"}
    assert sure_answers(caution(max(WEIGHTS)), certain.exp().numpy())[0].name == "herring gull"


def test_a_right_answer_is_worth_something_by_itself_and_one_below_the_wanted_share_is_not():
    """(information + ANY + weight) p against weight times the wanted share, by hand, for a family of three classes of four."""
    information = 1.0 - math.log(3) / math.log(4)
    least = 2.0 * 0.97 / (information + ANY + 2.0)
    for probability, level in ((least + 1e-3, "family"), (least - 1e-3, "unsure")):
        third = probability / 3
        (found,) = sure_answers(
            caution(2.0), log_probs([third, third, third, 1.0 - probability]).exp().numpy()
        )
        assert found.level == level


def test_a_group_of_one_class_is_called_by_the_class():
    (found,) = sure_answers(caution(2.0), log_probs([0.01, 0.01, 0.01, 0.97]).exp().numpy())
    assert (found.level, found.name) == ("species", "sooty owl")


def test_caution_is_as_small_as_the_wanted_share_allows():
    generator = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(4000, 4, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    known = logits.log_softmax(dim=1)
    weights = [calibrate_caution(LEVELS, known, labels, wanted) for wanted in (0.8, 0.9, 0.97)]
    assert weights == sorted(weights)
    assert weights[0] < weights[2]
    for wanted, weight in zip((0.8, 0.9, 0.97), weights, strict=True):
        report = levels_report(caution(weight, wanted=wanted), known, labels)["sure"]
        assert report["right"] >= wanted
        if weight > 0.0:
            assert report["right"] < wanted + 0.02


def test_caution_that_nothing_satisfies_names_nothing():
    labels = torch.zeros(50, dtype=torch.long)
    wrong = log_probs([0.0001, 0.0001, 0.0001, 0.9997]).expand(50, 4)
    weight = calibrate_caution(LEVELS, wrong, labels)
    assert weight is None
    assert {each.level for each in sure_answers(caution(weight), wrong.exp().numpy())} == {"unsure"}
    report = levels_report(caution(weight), wrong, labels)
    assert report["sure"]["answered"] == 0.0
    assert report["sure"]["right"] is None
    assert "0.0 % of the photos get an answer (97 wanted" in format_levels(report)


def test_a_group_of_all_classes_says_nothing():
    one = Levels(
        ("species", "genus", "family"),
        (("a", "b", "c", "d"), ("x", "x", "y", "y"), ("z", "z", "z", "z")),
    )
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(500, 4, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    known = logits.log_softmax(dim=1)
    for weight in (0.0, 1.0, 50.0, None):
        cautious = Caution("0123", one.names, one.groups, weight, 0.97, "validation")
        assert "family" not in {each.level for each in sure_answers(cautious, known.exp().numpy())}
    report = levels_report(Caution("0123", one.names, one.groups, 1.0, 0.97, "validation"), known, labels)
    assert report["top1"]["family"] == 1.0
    assert report["sure"]["at"]["family"] == 0.0
    assert report["mistakes"]["beyond"] == 0


def test_choosing_by_the_photos_that_are_measured_is_told():
    report = levels_report(caution(1.0), log_probs(SURE), torch.tensor([0]), in_sample=True)
    assert "these very ones" in format_levels(report)
    assert "these very ones" not in format_levels(
        levels_report(caution(1.0), log_probs(SURE), torch.tensor([0]))
    )


def test_accuracy_and_severity_by_hand():
    every = log_probs(SURE, TORN, [0.1, 0.1, 0.7, 0.1], [0.05, 0.05, 0.1, 0.8])
    labels = torch.tensor([0, 1, 0, 0])  # right, within the genus, within the family, beyond
    report = levels_report(caution(3.0), every, labels)
    assert report["top1"] == {"species": 0.25, "genus": 0.5, "family": 0.75}
    assert report["mistakes"] == {"genus": 1, "family": 1, "beyond": 1}
    assert report["severity"] == 2.0
    assert sum(report["sure"]["at"].values()) == pytest.approx(report["sure"]["answered"])
    assert json.loads(json.dumps(report)) == report
    assert "1 in the same genus, 1 in the same family, 1 beyond" in format_levels(report)
    right = levels_report(caution(3.0), every, torch.tensor([0, 0, 2, 3]))
    assert right["severity"] is None


def test_a_choice_is_read_as_it_was_written_and_no_other(tmp_path):
    checkpoint = tmp_path / "best.pt"
    file = caution_file(checkpoint)
    with pytest.raises(DataError, match="no such file; `racnn evaluate"):
        load_caution(checkpoint, "0123", LEVELS.groups[0])
    kept = caution(1.5)
    file.write_text(json.dumps(caution_json(kept)))
    assert load_caution(checkpoint, "0123", LEVELS.groups[0]) == kept
    with pytest.raises(DataError, match="made for other weights"):
        load_caution(checkpoint, "4567", LEVELS.groups[0])
    with pytest.raises(DataError, match="damaged, or of other classes"):
        load_caution(checkpoint, "0123", ["one", "two"])
    for change in ({"weight": -1.0}, {"weight": "much"}, {"names": ["species"]}, {"groups": []}):
        file.write_text(json.dumps(caution_json(kept) | change))
        with pytest.raises(DataError, match="damaged"):
            load_caution(checkpoint, "0123", LEVELS.groups[0])
    file.write_bytes(b"\xff{")
    with pytest.raises(DataError, match="damaged"):
        load_caution(checkpoint, "0123", LEVELS.groups[0])
