"""Every fault that a training has to survive has a test; here is which, and those that stand nowhere else."""

import ast
import errno
import os
from pathlib import Path

import pytest

from racnn.engine import checkpoint as files
from racnn.engine.checkpoint import load_checkpoint

TESTS = Path(__file__).parent
FAULTS = {
    "kill -9 at any moment, also during a save": [
        "engine/test_survival.py::test_killed_at_random_moments_it_ends_the_same",
        "engine/test_checkpoint.py::test_a_crash_while_saving_leaves_the_old_checkpoint",
        "engine/test_files.py::test_sweeping_deletes_half_files_alone",
    ],
    "SIGTERM, SIGINT": [
        "engine/test_trainer.py::test_sigterm_saves_right_after_the_step_and_exits_with_143",
        "engine/test_trainer.py::test_a_run_stopped_by_signals_ends_bit_for_bit_like_one_that_was_not",
        "engine/test_trainer.py::test_a_second_signal_ends_at_once_even_while_a_checkpoint_is_written",
        "test_cli.py::test_sigterm_ends_with_143",
    ],
    "resume at any step, in any phase, with another number of workers": [
        "engine/test_survival.py::test_stopped_after_every_third_step_it_ends_the_same",
        "engine/test_survival.py::test_two_processes_stopped_after_every_third_step_end_the_same",
        "engine/test_trainer.py::test_a_run_goes_on_with_another_number_of_workers",
    ],
    "a rank dies": [
        "engine/test_distributed.py::test_a_process_that_is_killed_is_started_again_and_ends_with_the_same_weights",
        "engine/test_distributed.py::test_a_machine_whose_process_is_killed_starts_again_with_the_others",
    ],
    "a loss or gradient that is not finite": [
        "engine/test_trainer.py::test_a_number_that_is_not_finite_stops_before_the_step",
        "engine/test_loop.py::test_a_step_that_is_not_finite_is_not_taken_and_names_losses_and_photos",
        "test_cli.py::test_a_loss_that_is_not_finite_ends_with_1",
    ],
    "boxes that collapse": [
        "evaluation/test_diagnostics.py::test_a_region_at_a_bound_on_most_photos_is_warned_of",
        "test_faults.py::test_the_share_of_regions_at_a_bound_is_recorded",
    ],
    "CUDA out of memory": [
        "engine/test_loop.py::test_the_batch_is_halved_until_it_fits_with_the_same_gradient",
        "engine/test_loop.py::test_a_single_photo_that_does_not_fit_ends_the_run_with_advice",
    ],
    "damaged and unusual photos": [
        "data/test_image_io.py::test_a_difficult_photo_has_its_right_pixels",
        "data/test_image_io.py::test_a_damaged_photo_is_refused_by_name_with_the_reason",
    ],
    "a small file of very many pixels": [
        "data/test_image_io.py::test_a_damaged_photo_is_refused_by_name_with_the_reason"
    ],
    "code in a checkpoint": [
        "test_cli_checkpoint.py::test_a_checkpoint_with_code_in_it_is_refused_and_not_executed",
        "test_cli_checkpoint.py::test_weights_with_code_in_them_are_refused_and_not_executed",
    ],
    "one flipped byte in a checkpoint": [
        "test_cli_checkpoint.py::test_a_checkpoint_with_a_flipped_byte_is_refused",
        "test_cli_checkpoint.py::test_where_the_last_checkpoint_is_damaged_the_way_to_the_one_before_is_told",
    ],
    "another number of classes or scales": [
        "test_cli_checkpoint.py::test_other_numbers_of_scales_and_classes_are_told"
    ],
    "a mistyped configuration": [
        "test_config.py::test_an_unknown_key_is_named_with_its_path_and_its_nearest_neighbour"
    ],
    "an archive that would leave its folder": [
        "data/test_download.py::test_an_archive_that_would_leave_its_folder_leaves_nothing"
    ],
    "a full disk, a folder that cannot be written": [
        "test_faults.py::test_a_disk_that_is_full_ends_the_run_and_leaves_the_old_checkpoint",
        "engine/test_checkpoint.py::test_a_full_device_is_told_as_what_it_is",
        "test_faults.py::test_a_folder_that_cannot_be_written_is_told",
        "data/test_cache.py::test_a_full_disk_is_told_before_anything_is_written",
    ],
    "two runs in one folder": [
        "test_cli.py::test_a_run_is_refused_twice_and_can_be_resumed",
        "engine/test_trainer.py::test_the_second_is_refused_and_changes_nothing",
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_tests(fault):
    assert FAULTS[fault]
    for name in FAULTS[fault]:
        file, _, test = name.partition("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, name


def test_a_disk_that_is_full_ends_the_run_and_leaves_the_old_checkpoint(
    racnn, tiny_file, tmp_path, monkeypatch
):
    config = tiny_file(tmp_path / "c.yaml", run__save_every=1)
    plain, saves = files.write_atomically, []

    def write(path, *args, **options):
        if path.name == "last.pt":
            saves.append(path)
        if len(saves) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        plain(path, *args, **options)

    monkeypatch.setattr("racnn.engine.checkpoint.write_atomically", write)
    result = racnn("train", "--config", config, "--out", tmp_path / "run")
    assert result.code == 1
    assert "No space left on device" in result.err
    assert "Traceback" not in result.err
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2


@pytest.mark.parametrize("name", ["a file", "a file/run"])
def test_a_folder_that_cannot_be_written_is_told(name, racnn, tiny_file, tmp_path):
    (tmp_path / "a file").write_text("mine")
    result = racnn("train", "--config", tiny_file(tmp_path / "c.yaml"), "--out", tmp_path / name)
    assert result.code == 2
    assert f"{tmp_path / 'a file'} is a file" in result.err
    assert "Traceback" not in result.err
    assert (tmp_path / "a file").read_text() == "mine"


def test_the_share_of_regions_at_a_bound_is_recorded(finished):
    import json

    rows = map(json.loads, (finished.folder / "metrics.jsonl").read_text().splitlines())
    shares = [row["region_1_at_bound"] for row in rows if row["kind"] == "val" and "region_1_at_bound" in row]
    assert shares
    assert all(0 <= share <= 1 for share in shares)
