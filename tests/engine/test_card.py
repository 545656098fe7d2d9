"""The model card says what was measured, beside what, and takes names for text."""

import json

from racnn.engine.card import model_card
from racnn.engine.checkpoint import open_checkpoint


def test_figures_are_those_of_the_validation_photos(finished):
    stored = open_checkpoint(finished.folder / "best.pt")
    card = model_card(stored, "net.onnx")
    report = stored.content.val_report
    for key, words in (
        ("fused", "**all looks together**"),
        ("scale_1", "one look at the whole photo"),
        ("scale_3", "look 3 by itself"),
    ):
        low, high = (f"{100 * end:.1f}" for end in report["top1_interval"][key])
        assert f"| {words} | {100 * report['top1'][key]:.1f} | {low} to {high} |" in card
    assert f"On {report['num_images']} validation photos" in card
    assert "was not measured (`racnn advise`)" in card
    assert f"{len(stored.content.train_names)} photos of the data set" in card
    assert 'session.run(["probabilities", "boxes"]' in card
    for name in stored.content.class_names:
        assert name in card


def test_what_costs_as_much_stands_beside_where_it_is_known(finished):
    way = {
        "name": "whole photo",
        "view_sizes": [96],
        "multiplications": 2.5e9,
        "top1": 0.5,
        "top1_interval": [0.4, 0.6],
    }
    card = model_card(open_checkpoint(finished.folder / "best.pt"), "net.safetensors", {"ways": [way]})
    assert "| whole photo | 96 | 2.50 | 50.0 |" in card
    assert "onnxruntime" not in card


def test_names_are_text(finished):
    stored = open_checkpoint(finished.folder / "best.pt")
    names = [
        "<script>alert(1)</script>",
        "a | b\n# c",
        "*x*",
        "[link](http://x)",
        *stored.content.class_names[4:],
    ]
    content = stored.content.model_copy(update={"class_names": names, "val_report": None})
    card = model_card(stored.__class__(stored.path, content, stored.config, stored.network), "n.onnx")
    for line in card.splitlines():
        assert not line.startswith("# c")
    assert "<script>" not in card.replace("\\<", "")
    assert "\\[link\\](http://x)" in card
    assert "Not measured" in card


def test_it_goes_with_every_export(finished, racnn, tmp_path):
    out = tmp_path / "net.safetensors"
    assert racnn("export-weights", finished.folder / "best.pt", "--out", out).code == 0
    card = (tmp_path / "net.safetensors.md").read_text()
    assert card == model_card(open_checkpoint(finished.folder / "best.pt"), "net.safetensors")
    header = json.loads(out.read_bytes()[8 : 8 + int.from_bytes(out.read_bytes()[:8], "little")])
    assert header["__metadata__"]["model_card"] == card
    (tmp_path / "other.safetensors.md").write_text("mine")
    refused = racnn("export-weights", finished.folder / "best.pt", "--out", tmp_path / "other.safetensors")
    assert refused.code == 2
    assert (tmp_path / "other.safetensors.md").read_text() == "mine"
    assert not (tmp_path / "other.safetensors").exists()
