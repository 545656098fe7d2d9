"""Names of classes and splits as people write them: put in order, made comparable, and told apart from splits."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

# What words for a split mean. Words that may mean either of two splits, such as "eval", are not among them.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "tests", "testing", "tst"), "test"),
}
OTHER_SPLIT_WORDS = frozenset(
    {"dev", "development", "eval", "evaluation", "evaluate", "holdout", "heldout", "hold", "held", "out"}
    | {"query", "gallery", "unlabeled", "unlabelled", "predict", "inference", "fold"}
)
# Words beside them that say nothing, as in "training_set" or "test images 2017".
FILLERS = frozenset(
    {"set", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "split", "folder"}
)
INVISIBLE = ("Cf", "Cc")  # categories of Unicode
YEAR = re.compile(r"(19|20)\d\d")
# Letters of other scripts that look like Latin ones (a selection of Unicode's confusables).
LOOKALIKES = str.maketrans(
    "аеорсухіјѕһԁԛԝАВЕКМНОРСТУХІЈЅΑΒΕΖΗΙΚΜΝΟΡΤΥΧο",
    "aeopcyxijshdqwABEKMHOPCTYXIJSABEZHIKMNOPTYXo",
)


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return what to sort names by, so that numbers in them count: 2 before 10. Equal keys are equal names."""
    parts = re.split(r"([0-9]+)", name)
    numbers = [part.lstrip("0") if i % 2 else part for i, part in enumerate(parts)]
    return [(len(part) if i % 2 else 0, part) for i, part in enumerate(numbers)], name


def class_name(text: str) -> str:
    """Return a class's name in its normal form: NFC, without what cannot be seen at its ends, spaces single.

    Two names that differ only in how their accents are stored, or in an invisible character at an end, are the same.
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    seen = [i for i, c in enumerate(text) if not (c.isspace() or unicodedata.category(c) in INVISIBLE)]
    return text[seen[0] : seen[-1] + 1] if seen else ""


def matching_classes(names: Iterable[str], known: Sequence[str]) -> list[int | None]:
    """Return for each name the position of the one known class that it means, or None.

    The same name comes first, then one that looks alike, then that without a number before it, as folders of
    CUB-200-2011 have it (``001.Auk``).
    """
    same, alike = defaultdict(list), defaultdict(list)
    for position, name in enumerate(known):
        same[class_name(name)].append(position)
        alike[_skeleton(name)].append(position)

    def find(name: str) -> int | None:
        short = _skeleton(without_number(name))
        found = same.get(name) or alike.get(_skeleton(name)) or alike.get(short) or []
        return found[0] if len(found) == 1 else None

    return [find(class_name(name)) for name in names]


def without_number(name: str) -> str:
    """Return a class's name without the number before it, as folders of CUB-200-2011 have it."""
    return re.sub(r"^[0-9]+\.", "", name)


def _skeleton(name: str) -> str:
    """Return what is left of a name when all that is easily overlooked is taken away."""
    text = unicodedata.normalize("NFKC", name).translate(LOOKALIKES).casefold()
    text = "".join(c for c in text if unicodedata.category(c) not in INVISIBLE)
    return " ".join(re.sub(r"[_\-]", " ", text).split())


def lookalike_warnings(names: Iterable[str]) -> list[str]:
    """Return a line for each group of class names that a reader would take for one another, written in ASCII.

    They differ only in case, in invisible characters, in how words are joined (space, ``_``, ``-``), or in letters of
    another script that look the same.
    """
    groups = defaultdict(list)
    for name in names:
        groups[_skeleton(name)].append(ascii(name))
    return [
        f"class names that look alike: {', '.join(group)}; are they one class?"
        for group in groups.values()
        if len(group) > 1
    ]


def split_of(name: str) -> str | None:
    """Return 'train', 'val' or 'test' where a name commonly means that, as 'Training_set' does; else None."""
    words = [word for word in _words(name) if word not in FILLERS and not YEAR.fullmatch(word)]
    return SPLIT_WORDS.get("".join(words)) if len(words) == 1 else None


def looks_like_split(name: str) -> bool:
    """Return whether a name is one for a split, whether or not it can be told of which, as 'test2' or 'hold-out'."""
    words = [word for word in _words(name) if word not in FILLERS and not word.isdigit()]
    return bool(words) and all(word in SPLIT_WORDS or word in OTHER_SPLIT_WORDS for word in words)


def _words(name: str) -> list[str]:
    """Return the words of a name in small letters, numbers apart, a filler that is stuck to its end too."""
    words = re.findall(r"[a-z]+|[0-9]+", name.casefold())
    return [
        next((stem for filler in sorted(FILLERS) if (stem := word.removesuffix(filler)) in SPLIT_WORDS), word)
        for word in words
    ]
