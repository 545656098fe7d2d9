"""Whatever stands in a configuration: it is read, or it is a user's mistake, at once and in little memory."""

import copy
import datetime
import random
from pathlib import Path

import pytest
import yaml
from conftest import tiny_values
from fuzz import NESTED, NUMBERS, WORDS, is_refused, little_memory, mutate

from racnn.config import dump_config, load_config, parse_config

SNIPPETS = [" ", "\t", "\n", ":", "- ", "{", "[", "]]]", "&a ", "*a", "!!int ", "!!timestamp x", "#", "0"]
CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def scramble(text, rng):
    """Return a text with some characters replaced, taken out or put in."""
    letters = list(text)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(letters))
        letters[place : place + rng.choice([0, 1, 1, 8])] = rng.choice(SNIPPETS)
    return "".join(letters)


def a_wrong_configuration(rng, bases):
    """Return YAML and what was changed in it."""
    values = copy.deepcopy(rng.choice(bases))
    junk = [None, True, *NUMBERS, *WORDS, *NESTED, datetime.date(2001, 9, 9), b"\xff"]
    done = [mutate(values, rng, junk) for _ in range(rng.randint(1, 3)) if values]
    text = yaml.safe_dump(values)
    if rng.random() < 0.25:
        text = scramble(text, rng)
        done.append("scramble")
    return text, f"{done}:\n{text[:2000]}"


def test_a_thousand_wrong_configurations_are_read_or_refused(tmp_path):
    rng = random.Random(0)
    bases = [tiny_values(), *(yaml.safe_load(path.read_text(encoding="utf-8")) for path in CONFIGS)]
    bases += [dump_config(load_config(path)) for path in CONFIGS[:3]]
    path, refused = tmp_path / "c.yaml", 0
    with little_memory():
        for _ in range(1000):
            text, told = a_wrong_configuration(rng, bases)
            path.write_text(text, encoding="utf-8", errors="surrogatepass")

            def read():
                config = load_config(path)
                assert parse_config(dump_config(config), origin="dump", stored=True) == config

            refused += is_refused(read, told)
    assert 400 < refused < 950


@pytest.mark.parametrize(
    "text",
    [
        "[" * 400,
        "a: " + "{b: " * 400,
        "run: &a {out: *a}",
        "schedule: &a [*a, *a]",
        "run: {seed: 2001-99-99}",
        "run: {seed: !!timestamp x}",
        "run: {seed: !!bool x}",
        "run: {seed: " + "9" * 5000 + "}",
        "data: {classes: 1-999999999999}",
        "model: {view_sizes: [1000000000]}",
        f"model: {{view_sizes: [{'32, ' * 10_000}]}}",
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "\n".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
        )
        + "\nrun: *j\nschedule: *j\n",
        "? [1, 2]\n: 3",
        "run: {? {a: b} : 3}",
        "<<: 3",
        "<<: [1]",
        "run: {<<: {seed: 3}}",
        "\ufeff{}",
        "a\0b: 3",
        "--- 1\n--- 2",
    ],
    ids=lambda text: text[:24].encode("unicode_escape").decode(),
)
def test_a_wicked_configuration_is_read_or_refused(text, tmp_path):
    """An empty one behind a byte order mark is the only one that can be read."""
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    assert is_refused(lambda: load_config(path), text[:200]) == (text != "\ufeff{}")
    if "\n" not in text and "\0" not in text:
        assert is_refused(lambda: load_config(None, [f"run.seed={text}", f"schedule={text}"]), text[:200])
