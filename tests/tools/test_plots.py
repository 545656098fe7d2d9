"""tools/plots.py draws every file of numbers, and the same numbers alike."""

import pytest

import plots as tool
from racnn.errors import DataError

SLOPES = """cub200, val: 60 photos; log p of scale 2 as region 1 moves
coordinate  photos   step  slope rms  with the derivative (rms)  same sign %  with the largest step
tx              60   0.02       1.53          -0.06 (  42.00)               50                   0.11
tx              60   0.20       0.53           0.16 (  42.00)               55                   1.00
ty               2  have room to move: at the bounds, or at the edge
"""
ROWS = """variant,seed,top1_scale_1,top1_scale_2,log_prob_scale_2
one look,0,0.5,,
taught,0,0.5,0.75,-0.5
taught,1,0.5,0.85,-0.7
peak,0,0.5,0.6,-0.9
"""
FINALS = """variant,seed,top1_scale_1,top1_scale_2,top1_fused,log_prob_scale_1,log_prob_scale_2,log_prob_fused
one look,0,0.5,,,-1.5,,
recipe,0,0.5,0.75,0.8,-1.4,-0.5,-0.4
"""


@pytest.fixture
def numbers(tmp_path):
    (tmp_path / "a.slopes.txt").write_text(SLOPES)
    (tmp_path / "b.rows.csv").write_text(ROWS)
    (tmp_path / "c.finals.csv").write_text(FINALS)
    return tmp_path


def test_every_file_gets_its_picture_and_the_same_again(numbers):
    pictures = []
    for _ in range(2):
        tool.main(numbers)
        pictures.append(
            [(numbers / name).read_bytes() for name in ("a.slopes.svg", "b.rows.svg", "c.finals.svg")]
        )
    assert pictures[0] == pictures[1]
    assert all(b"<svg" in picture for picture in pictures[0])


def test_the_points_are_those_of_the_files(numbers):
    left, right = tool.draw_slopes(numbers / "a.slopes.txt").axes
    assert [list(line.get_ydata()) for line in left.lines if line.get_label() == "tx"] == [[-0.06, 0.16]]
    assert [list(line.get_ydata()) for line in right.lines if line.get_label() == "tx"] == [[0.11, 1.0]]
    top1, log_prob = tool.draw_rows(numbers / "b.rows.csv").axes
    assert [label.get_text() for label in top1.get_yticklabels()] == ["taught", "peak"]
    assert [list(line.get_xdata()) for line in top1.lines][:2] == [[75.0, 85.0], [80.0]]
    assert [list(line.get_xdata()) for line in log_prob.lines][2:] == [[-0.9], [-0.9]]
    top1, log_prob = tool.draw_finals(numbers / "c.finals.csv").axes
    answers = ["one look: scale_1", "recipe: scale_1", "recipe: scale_2", "recipe: fused"]
    assert [label.get_text() for label in top1.get_yticklabels()] == answers
    assert list(top1.lines[-1].get_xdata()) == [80.0]
    assert list(log_prob.lines[0].get_xdata()) == [-1.5]


def test_a_folder_without_numbers_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected files of numbers"):
        tool.main(tmp_path)
