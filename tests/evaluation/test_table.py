"""Tables: aligned by what is seen, plain where nobody looks."""

import sys
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from racnn.evaluation.chart import BOTTOM, Dot, _round_costs, cost_chart
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
def test_a_row_is_bold_where_somebody_looks_and_none_is_cut(seen, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: seen)
    wide = table(["answer", *["a column of some width"] * 9], [["x" * 60, *["1.25"] * 9]])
    assert "x" * 60 in wide
    assert wide.count("1.25") == 9
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: seen)
    *_, first, _, last = table(["answer", "top-1 %"], ROWS, strong="fused").splitlines()
    assert ("\x1b[1m" in last, "\x1b" in first) == (seen, False)


def test_costs_are_marked_by_round_numbers():
    assert _round_costs(3e8, 3e9) == [(5e8, "500 M"), (1e9, "1 G"), (2e9, "2 G")]
    assert _round_costs(0.9, 6.0) == [(1.0, "1"), (2.0, "2"), (5.0, "5")]
    assert 2 <= len(_round_costs(2.5e9, 3.6e9)) <= 9, "costs that are nearly alike"
    assert 2 <= len(_round_costs(1.0, 1e12)) <= 9
    places = [cost for cost, _ in _round_costs(1.4e9, 1.9e9)]
    assert places == sorted(places)


@pytest.mark.parametrize("costs", [(3e9,), (15e9, 16e9), (0.0, 4e9), (1e6, 1e12)])
def test_a_chart_has_marks_that_stand_apart(costs):
    dots = [Dot(cost, 0.5, (0.4, 0.6), "a", "a", "red") for cost in costs]
    drawn = ET.fromstring(cost_chart(dots, legend={"a": "red"}, caption="c"))
    marks = [
        float(each.get("x"))
        for each in drawn.iter("{http://www.w3.org/2000/svg}text")
        if each.get("y") == str(BOTTOM + 16)
    ]
    assert len(marks) >= 2
    assert all(after - before > 30 for before, after in pairwise(marks))
