"""Heads of genera and families agree with those of the species, and say where to look."""

import pytest
import torch

from racnn.errors import ConfigError
from racnn.models import RACNN
from racnn.models.racnn.level_heads import LevelHeads, agree
from racnn.models.racnn.looks import trust_out_of_fold

GENUS = ("a", "b", "b", "c", "c", "c", "alone")
FAMILY = ("x", "x", "x", "y", "y", "y", "z")
SPECIES = tuple(f"s{i}" for i in range(7))


def heads(dtype=torch.float64):
    torch.manual_seed(0)
    found = LevelHeads(5, 2, 7, ("genus", "family"))
    found.set_groups([GENUS, FAMILY])
    return found.to(dtype)


def shares(log_probs, names):
    """Return the probability of each group, [N, groups], in the order of their first class."""
    return torch.stack(
        [log_probs.exp()[:, [name == group for group in names]].sum(dim=1) for name in dict.fromkeys(names)],
        dim=1,
    )


def answered(number, names, seed):
    """Return logits of a level's head, and the probabilities of its groups."""
    logits = torch.randn(number, 7, generator=torch.Generator().manual_seed(seed))
    first = [names.index(name) for name in dict.fromkeys(names)]
    known = torch.full_like(logits, -1e4)
    known[:, first] = logits[:, first]
    return known, known.softmax(dim=1)[:, first]


@pytest.fixture
def given():
    fused = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    return fused, *answered(4, GENUS, 2), *answered(4, FAMILY, 3)


def test_the_answer_is_the_chain_of_family_genus_and_species(given):
    fused, genus, of_genus, family, of_family = given
    found = agree(fused, [genus, family], heads().groups, torch.ones(2))
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(4))
    torch.testing.assert_close(shares(found, FAMILY), of_family)
    species, genera = list(fused.softmax(dim=1).T), list(dict.fromkeys(GENUS))
    for number in range(7):
        own = genera.index(GENUS[number])
        siblings = [i for i in range(7) if GENUS[i] == GENUS[number]]
        cousins = [genera.index(g) for g in dict.fromkeys(GENUS) if FAMILY[GENUS.index(g)] == FAMILY[number]]
        expected = (
            of_family[:, list(dict.fromkeys(FAMILY)).index(FAMILY[number])]
            * of_genus[:, own]
            / of_genus[:, cousins].sum(dim=1)
            * species[number]
            / sum(species[i] for i in siblings)
        )
        torch.testing.assert_close(found.exp()[:, number], expected)


def test_heads_that_are_not_trusted_say_nothing(given):
    fused, genus, _, family, _ = given
    found = agree(fused, [genus, family], heads().groups, torch.zeros(2))
    torch.testing.assert_close(found, fused.log_softmax(dim=1))


def test_half_trust_is_the_geometric_mean(given):
    fused, _, _, family, of_family = given
    found = agree(fused, [family], heads().groups[1:], torch.tensor([0.5]))
    both = (shares(fused.log_softmax(dim=1), FAMILY) * of_family).sqrt()
    torch.testing.assert_close(shares(found, FAMILY), both / both.sum(dim=1, keepdim=True))


def test_the_order_of_the_classes_does_not_matter(given):
    fused, genus, _, family, _ = given
    order = torch.tensor([3, 6, 1, 0, 5, 2, 4])
    moved = heads()
    moved.set_groups([[GENUS[i] for i in order], [FAMILY[i] for i in order]])

    def renamed(answers, names):
        """Give the outputs of a level's groups to their first classes in the new order."""
        found = torch.full_like(answers, -1e4)
        names_now = [names[i] for i in order]
        for name in dict.fromkeys(names):
            found[:, names_now.index(name)] = answers[:, names.index(name)]
        return found

    trust = torch.tensor([0.7, 0.4])
    plain = agree(fused, [genus, family], heads().groups, trust)
    other = agree(fused[:, order], [renamed(genus, GENUS), renamed(family, FAMILY)], moved.groups, trust)
    torch.testing.assert_close(other, plain[:, order])


def test_a_class_without_a_genus_is_its_own():
    found = heads()
    assert found.groups[0].tolist() == [0, 1, 1, 3, 3, 3, 6]
    assert found.groups[1].tolist() == [0, 0, 0, 3, 3, 3, 6]
    descriptors = torch.randn(50, 5, dtype=torch.float64)
    assert set(found.best_groups(0, descriptors).tolist()) <= {0, 1, 3, 6}


def test_trust_is_chosen_by_what_explains_the_labels():
    labels = torch.arange(7).repeat(30)
    truth = heads().groups[1][labels]
    torch.manual_seed(0)
    fused = torch.zeros(210, 7)
    good = torch.full((210, 7), -1e4)
    good[:, [0, 3, 6]] = 0.0
    good[torch.arange(210), truth] = 4.0
    shuffled = good[torch.randperm(210)]
    assert trust_out_of_fold(fused, [good], heads().groups[1:], labels)[0] > 0.9
    assert trust_out_of_fold(fused, [shuffled], heads().groups[1:], labels)[0] < 0.1


def test_the_species_of_a_look_hear_nothing_of_the_levels():
    torch.manual_seed(0)
    plain = RACNN(num_classes=7, backbone="tiny", view_sizes=(32, 32)).eval()
    levelled = RACNN(num_classes=7, backbone="tiny", view_sizes=(32, 32), level_heads=("genus",)).eval()
    levelled.load_state_dict(plain.state_dict(), strict=False)
    levelled.take_levels(("species", "genus", "family"), (SPECIES, GENUS, FAMILY))
    photos = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        ours, theirs = levelled(photos), plain(photos)
    for one, other in zip(ours.logits, theirs.logits, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(ours.fused, theirs.fused.log_softmax(dim=1))
    levelled.levels.trust.fill_(1.0)
    with torch.no_grad():
        assert not torch.allclose(levelled(photos).fused, ours.fused)


def test_regions_of_levels_are_where_the_whole_photo_speaks_for_their_groups():
    torch.manual_seed(0)
    model = RACNN(
        num_classes=7,
        backbone="tiny",
        view_sizes=(32,) * 5,
        apn="response",
        regions="parallel",
        level_heads=("genus", "family"),
    ).eval()
    model.take_levels(("species", "genus", "family"), (SPECIES, GENUS, FAMILY))
    with torch.no_grad():
        output = model(torch.rand(2, 3, 48, 48))
        first = output.scales[0]
        for level in (0, 1):
            groups = model.levels.best_groups(level, first.descriptor)
            evidence = model.evidence(1, first.features, groups, level=level)
            assert torch.equal(output.regions[3 + level], model.apns[2 + level](evidence))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("gens",), "knows no level 'gens' (did you mean 'genus'?); expected some of genus, family"),
        (("family", "genus"), "in the order of data.levels"),
        (("genus", "genus"), "once and in the order"),
        (("species",), "knows no level 'species'"),
    ],
)
def test_names_that_are_no_levels_are_refused(names, said):
    model = RACNN(num_classes=7, backbone="tiny", view_sizes=(32, 32), level_heads=names)
    with pytest.raises(ConfigError) as caught:
        model.take_levels(("species", "genus", "family"), (SPECIES, GENUS, FAMILY))
    assert said in str(caught.value)


def test_configurations_that_do_not_fit_are_refused(tiny):
    looks = {"schedule": [{"kind": "looks"}], "model__apn": "response", "model__level_heads": ["genus"]}
    for changes, said in (
        (looks, r"needs data\.levels"),
        ({"model__level_heads": ["genus"], "data__levels": "x"}, "a looks phase fits them"),
        (looks | {"model__view_sizes": [32], "data__levels": "x"}, "two view_sizes or more"),
        (
            looks | {"model__view_sizes": [32] * 5, "model__regions": "parallel", "data__levels": "x"},
            "take at most 4 view_sizes here, not 5",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            tiny(**changes)
