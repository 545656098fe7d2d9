"""Tables for a terminal, in bold where one is looked at, and as plain text anywhere else."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

RULE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)  # one under the head, nothing else
WIDEST, HIGHEST = 10_000, 25  # of which only both together keep a terminal's width from cutting numbers
FIRST = 12  # the least width of a first column, so that the tables of a report start alike


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, strong: str | None = None) -> str:
    """Lay out a table: the first column to the left, the others to the right, a rule under the head.

    Args:
        head: Names of the columns.
        rows: As many cells each.
        strong: The first cell of a row to show in bold.
    """
    grid = Table(box=RULE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for number, name in enumerate(head):
        grid.add_column(
            Text(name), justify="right" if number else "left", no_wrap=True, min_width=0 if number else FIRST
        )
    for row in rows:
        grid.add_row(*map(Text, row), style="bold" if row[0] == strong else "")
    console = Console(
        file=io.StringIO(), width=WIDEST, height=HIGHEST, force_terminal=sys.stdout.isatty(), highlight=False
    )
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
