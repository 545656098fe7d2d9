"""Tables: aligned by what is seen, plain where nobody looks."""

import sys

import pytest

from racnn.evaluation.chart import _round_costs
from racnn.evaluation.table import table

ROWS = [["scale_1", "7.5"], ["[bold]\u9ce5 :bird:", "80"], ["fused", "12.25"]]


def test_columns_end_together_and_names_are_text(capsys):
    head, rule, *lines = table(["answer", "top-1 %"], ROWS, strong="fused").splitlines()
    assert set(rule) == {"-"}
    assert [line.split()[-1] for line in lines] == ["7.5", "80", "12.25"]
    assert lines[1].startswith("[bold]\u9ce5 :bird:")
    widths = [len(line) + line.count("\u9ce5") for line in (head, rule, *lines)]  # it takes two columns
    assert len(set(widths)) == 1


@pytest.mark.parametrize("seen", [True, False])
def test_a_row_is_bold_where_somebody_looks(seen, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: seen)
    *_, first, _, last = table(["answer", "top-1 %"], ROWS, strong="fused").splitlines()
    assert ("\x1b[1m" in last, "\x1b" in first) == (seen, False)


def test_costs_are_marked_by_round_numbers():
    assert _round_costs(3e8, 3e9) == [(5e8, "500 M"), (1e9, "1 G"), (2e9, "2 G")]
    assert _round_costs(0.9, 6.0) == [(1.0, "1"), (2.0, "2"), (5.0, "5")]
    assert [name for _, name in _round_costs(9e12, 1.5e16)][-1] == "10000 T"
