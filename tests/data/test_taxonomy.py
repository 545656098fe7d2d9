"""Taxonomies: files, folders, and what is wrong with them."""

import layouts
import pytest

from racnn.data import build_data
from racnn.data.taxonomy import read_levels
from racnn.errors import DataError
from racnn.sections import DataConfig

BIRDS = (
    "species,genus,family\nHerring_Gull,Larus,Laridae\nArctic Tern,Sterna,Laridae\nBarn Owl,Tyto,Tytonidae\n"
)


def levels(text, names, tmp_path):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    return read_levels(str(tmp_path / "t.csv"), names, DataConfig())


def test_classes_find_their_groups_in_the_order_of_the_network(tmp_path):
    found = levels("\ufeff" + BIRDS, ["Barn Owl", "001.Herring Gull"], tmp_path)
    assert found.names == ("species", "genus", "family")
    assert found.groups == (
        ("Barn Owl", "001.Herring Gull"),
        ("Tyto", "Larus"),
        ("Tytonidae", "Laridae"),
    )


def test_the_packaged_taxonomy_knows_all_birds_of_cub():
    names = ["Black footed Albatross", "Common Yellowthroat", "Boat tailed Grackle"]
    found = read_levels("cub200", names, DataConfig())
    assert found.names == ("species", "genus", "family", "order")
    assert found.groups[2] == ("Diomedeidae", "Parulidae", "Icteridae")
    assert found.groups[3] == ("Procellariiformes", "Passeriformes", "Passeriformes")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a head"),
        ("species\nBarn Owl\n", "expected a head"),
        ("species,,family\nBarn Owl,a,b\n", "expected a head"),
        ("species,genus,genus\nBarn Owl,a,b\n", "two columns have the same name"),
        ("species,genus\nBarn Owl\n", "line 2: expected 2 fields that are not empty"),
        ("\n\nspecies,genus\n\nBarn Owl,\n", "line 5: expected 2 fields that are not empty"),
        ('species,genus\nBarn Owl,"' + "x" * 200_000, "line 2: field larger"),
        ("species,genus\nBarn Owls,Tyto\n", "has no row, or more than one, for Barn Owl"),
        ("species,genus\nBarn Owl,Tyto\nbarn_owl,Tyto\nBarn-Owl,x\n", None),
        ("species,genus,family\nBarn Owl,Tyto,a\nWren,Tyto,b\n", "genus Tyto is in family a and in b"),
    ],
)
def test_what_is_no_taxonomy_is_told(text, said, tmp_path):
    names = ["Barn Owl", "Wren"] if text.count("Wren") else ["Barn Owl"]
    if said is None:  # the very name is known, though others look alike
        assert levels(text, names, tmp_path).groups[1] == ("Tyto",)
        return
    with pytest.raises(DataError, match=said):
        levels(text, names, tmp_path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: cannot be read: No such file"):
        read_levels(str(tmp_path / "none.csv"), ["a"], DataConfig())
    with pytest.raises(DataError, match="cannot be read"):
        read_levels("~nobody-of-this-name/x.csv", ["a"], DataConfig())
    with pytest.raises(DataError, match="did you mean 'cub200'"):
        read_levels("cub20", ["a"], DataConfig())


def nested(
    root, names=("Laridae/Larus/Herring Gull", "Laridae/Sterna/Arctic Tern", "Tytonidae/Tyto/Barn Owl")
):
    for number, name in enumerate(names):
        for i in range(6):
            layouts.write_photo(root / name / f"{i}.png", seed=10 * number + i)
    return DataConfig(dataset="folder", root=root, levels="folders")


def test_nested_folders_are_classes_in_their_groups(tmp_path):
    config = nested(tmp_path)
    data = build_data(config, seed=0)
    assert data.class_names == ["Arctic Tern", "Barn Owl", "Herring Gull"]
    found = read_levels("folders", data.class_names, config)
    assert found.names == ("class", "group 1", "group 2")
    assert found.groups[1:] == (("Sterna", "Tyto", "Larus"), ("Laridae", "Tytonidae", "Laridae"))
    flat = build_data(config.model_copy(update={"levels": None}), seed=0)
    assert flat.class_names == ["Laridae", "Tytonidae"]


def test_nested_folders_that_make_no_levels_are_told(tmp_path):
    uneven = nested(tmp_path / "a", ("Laridae/Larus/Herring Gull", "Tytonidae/Barn Owl"))
    with pytest.raises(DataError, match=r"'Barn Owl' is in 1 folder.* 'Herring Gull' in 2"):
        read_levels("folders", ["Herring Gull", "Barn Owl"], uneven)
    flat = nested(tmp_path / "b", ("Herring Gull", "Barn Owl"))
    with pytest.raises(DataError, match="in folders of their groups"):
        read_levels("folders", ["Herring Gull", "Barn Owl"], flat)
    loose = nested(tmp_path / "c")
    layouts.write_photo(tmp_path / "c" / "Laridae" / "loose.png")
    with pytest.raises(DataError, match="Laridae holds both photos and folders"):
        build_data(loose, seed=0)
    with pytest.raises(DataError, match="is of folders of photos"):
        read_levels("folders", ["a"], DataConfig(dataset="cub200"))
