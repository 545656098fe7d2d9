"""racnn export: the file answers as the checkpoint does, needs no torch, and what is not such a file is refused."""

import dataclasses
import json
import shutil
import subprocess
import sys

import layouts
import numpy as np
import pytest
import torch
from PIL import Image

import racnn as api
from racnn.data import read_photo
from racnn.data.transforms import SourceTransform
from racnn.engine.predictor import load, why_cells
from racnn.errors import CheckpointError, ConfigError, DataError, ExportError
from racnn.models.early_exit import look_until_confident
from racnn.models.family import combined_log_probs
from racnn.portable.onnx_bytes import KEY, SHA256, read_about, sha256_of

pytest.importorskip("onnxscript", reason="needs the extra export")
onnx = pytest.importorskip("onnx", reason="needs the extra export")
from racnn.export import onnx_file  # noqa: E402
from racnn.export.graph import Graph, Port  # noqa: E402
from racnn.export.int8 import Lost, measure_lost, photos_of, quantised, refuse_lost  # noqa: E402

SMALL = ["--backbone", "tiny", "--set", "model.weights=null", "--set", "model.view_sizes=[32, 32, 32]"]
SMALL += ["--set", "data.source_size=48", "--set", "data.num_workers=0", "--set", "run.num_preview=0"]
SHAPES = [(48, 48), (90, 60), (31, 77), (200, 150), (5, 120)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder of a run of quick on nested class folders, with its export, and photos of many sizes and modes."""
    place = tmp_path_factory.mktemp("export")
    for number, name in enumerate(("Gulls/a", "Gulls/b", "Owls/c")):
        for i in range(8):
            layouts.write_photo(place / "birds" / name / f"{i}.png", seed=10 * number + i)
    words = ["train", place / "birds", "--out", place / "run", "--set", "data.levels=folders", *SMALL]
    run(*words, "--device", "cpu")
    run("export", place / "run" / "best.pt", "--out", place / "net.onnx")
    (place / "photos").mkdir()
    for number, shape in enumerate(SHAPES):
        pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize(shape[::-1])
        image.save(place / "photos" / f"{number}.png")
        image.convert(["L", "RGB", "CMYK"][number % 3]).save(place / "photos" / f"{number}.jpg")
        image.convert("RGBA").quantize(32).save(place / "photos" / f"{number}p.png")
    return place


def run(*words):
    done = subprocess.run(
        [sys.executable, "-m", "racnn", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def networks(made):
    """Return the network of the checkpoint, in float32, and that of the file."""
    trained = load(made / "run" / "best.pt", levels=True)
    trained.model.compute_dtype = None
    return trained, api.load(made / "net.onnx", levels=True)


def rows_of(network, made, **options):
    return list(network.stream([made / "photos"], **options))


def test_the_file_answers_as_the_checkpoint(networks, made):
    trained, portable = networks
    assert (portable.class_names, portable.scales, portable.fused) == (trained.class_names, 3, True)
    theirs, ours = rows_of(trained, made), rows_of(portable, made, workers=2)
    assert [row["photo"] for row in ours] == [row["photo"] for row in theirs]
    assert len(ours) == 3 * len(SHAPES)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert a["top"][0]["name"] == b["top"][0]["name"]
        assert a["top"][0]["probability"] == pytest.approx(b["top"][0]["probability"], abs=2e-3)
        np.testing.assert_allclose(a["boxes_xyxy"], b["boxes_xyxy"], atol=0.5)
        assert a["sure"]["level"] == b["sure"]["level"]


def test_a_prediction_has_all_that_a_prediction_has(networks, made):
    _, portable = networks
    theirs, ours = (each.predict(made / "photos" / "1.jpg", why=True) for each in networks)
    assert ours.to_dict().keys() == theirs.to_dict().keys()
    assert ours.looks.keys() == theirs.looks.keys()
    for a, b in zip(ours.views, theirs.views, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=0.01)
    for a, b in zip(ours.why, theirs.why, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-3)
    assert ours.show().size == theirs.show().size
    assert [
        each.name for each in portable.predict([made / "photos" / "0.png", np.zeros((9, 9, 3), np.uint8)])
    ]


def test_early_exit_stops_where_it_did_and_batches_do_not_matter(networks, made):
    trained, portable = networks
    early = trained.early_exit
    assert portable.early_exit == (early.at(1), early.at(2))
    photos = [np.array(Image.open(made / "photos" / f"{i}.png").resize((60, 40))) for i in range(len(SHAPES))]
    together = portable._run(np.stack(photos), ["probabilities", "looks", "boxes", "view_2"])
    assert together["looks"].tolist() == [3] * len(photos)
    transform = SourceTransform(48, "squash")
    seen = set()
    for least in (0.0, 0.4, 0.55, 0.7, 2.0):
        stop = (least, least)
        batch = portable._run(np.stack(photos), ["probabilities", "looks", "boxes", "look_3"], stop)
        choice = early.__class__(early.network, least, early.pools, early.costs)
        for i, photo in enumerate(photos):
            alone = portable._run(photo[None], ["probabilities", "looks"], stop)
            assert alone["looks"][0] == batch["looks"][i]
            np.testing.assert_allclose(alone["probabilities"][0], batch["probabilities"][i], atol=1e-6)
            source = transform.source(photo, photo.shape[:2])[None]
            ((_, log_probs, regions),) = look_until_confident(
                trained.model, source, choice, scales=3, fused=True
            )
            assert len(regions) == batch["looks"][i]
            np.testing.assert_allclose(batch["probabilities"][i], log_probs[0].exp(), atol=1e-3)
            assert np.isfinite(batch["boxes"][i]).all(axis=1).tolist() == [n < len(regions) for n in (1, 2)]
            assert bool(batch["look_3"][i].any()) == (len(regions) == 3)
            seen.add(len(regions))
    assert seen >= {1, 3}
    rows = rows_of(portable, made, early=(0.0, 0.0))
    assert {(row["scales"], len(row["boxes_xyxy"])) for row in rows} == {(1, 0)}


def test_whys_are_those_of_the_network(networks, made):
    trained, portable = networks
    photo = read_photo(made / "photos" / "3.png")
    source = SourceTransform(48, "squash").source(photo, photo.shape[:2])[None]
    with torch.no_grad():
        output = trained.model(source)
        wanted = why_cells(trained.model, output, combined_log_probs(output.logits, output.fused))
    found = portable._run(photo[None], ["why_1", "why_2", "why_3"])
    for number, cells in enumerate(wanted, start=1):
        np.testing.assert_allclose(found[f"why_{number}"], cells.numpy(), atol=1e-3)


def without_torch(*words):
    """Call the command line where none of the large packages is installed."""
    code = (
        "import sys; sys.argv[0] = 'racnn'\n"
        "for name in ('torch', 'torchvision', 'albumentations', 'cv2', 'timm', 'scipy', 'yaml', 'onnx'):\n"
        "    sys.modules[name] = None\n"
        "from racnn.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
    )


def test_it_needs_no_torch(made):
    done = without_torch("predict", made / "net.onnx", made / "photos", "--json", "--levels")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3 * len(SHAPES)
    assert {row["sure"]["level"] for row in rows} <= {"class", "group", "unsure"}


def test_what_needs_torch_says_so(made):
    done = without_torch("evaluate", made / "run" / "best.pt")
    assert done.returncode == 2
    assert "needs torch, which is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_commands_that_take_it_and_those_that_do_not(made, racnn, tmp_path):
    file = made / "net.onnx"
    assert racnn("predict", file, made / "photos", "--early-exit", "--csv").code == 0
    seen = racnn("visualize", file, made / "photos", "--limit", 2, "--why", "--out", tmp_path / "seen")
    assert seen.code == 0, seen.err
    assert len(list((tmp_path / "seen").glob("*.png"))) == 2
    assert json.loads(racnn("inspect", file, "--json").out)["checked"]["probability"] <= onnx_file.MOST_OFF
    assert "off by at most" in racnn("inspect", file).out
    for words in (("evaluate", file), ("report", file), ("export-weights", file, "--out", "a.safetensors")):
        refused = racnn(*words)
        assert refused.code == 2, words
        assert ".onnx" in refused.err
    refused = racnn("predict", file, made / "photos", "--device", "cuda")
    assert refused.code == 2
    assert "run on the CPU" in refused.err
    refused = racnn("predict", file, made / "photos", "--batch-size", 8)
    assert refused.code == 2
    assert "one by one" in refused.err
    refused = racnn("export", made / "run" / "best.pt", "--out", file)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert racnn("export", made / "run" / "best.pt", "--out", tmp_path / "net.pb").code == 2


def test_a_network_that_answers_otherwise_is_not_written(networks, monkeypatch):
    trained, _ = networks
    content = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    monkeypatch.setattr("racnn.export.network.build_onnx", lambda *_, **__: content)
    monkeypatch.setattr(onnx_file, "check", lambda *_: onnx_file.Checked(1, 1, 5e-4, 5e-4, 1.0, 0.0, 0.0))
    with pytest.raises(ExportError, match=r"answers otherwise.*5\.0e-04.*Nothing was written"):
        onnx_file.export_onnx(trained, [])


@pytest.mark.parametrize(
    ("output", "op", "by", "key", "least"),
    [
        ("boxes", "Add", 1.0, "box", 0.99), ("why_2", "Mul", 0.9, "why", 0.09),
        ("look_2", "Mul", 0.5, "probability", 0.01), ("source", "", 0, "levels", 100),
    ],
)  # fmt: skip
def test_what_differs_is_found(output, op, by, key, least, networks, made):
    trained, _ = networks
    model = onnx.load_from_string((made / "net.onnx").read_bytes())
    (node,) = (each for each in model.graph.node if output in each.output)
    if op:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(by), "by"))
        changed = onnx.helper.make_node(op, [node.input[0], "by"], [output])
    else:
        changed = onnx.helper.make_node("BitwiseNot", [node.input[0]], [output])
    node.CopyFrom(changed)
    photos = onnx_file.sample_photos(trained, None, 1)[:2]
    found = onnx_file.check(trained, model.SerializeToString(), photos)
    assert getattr(found, key) >= least
    assert not found.is_good()
    assert onnx_file.check(trained, (made / "net.onnx").read_bytes(), photos).is_good()


def test_an_answer_that_leaves_off_early_is_checked_too(networks, made, monkeypatch):
    trained, _ = networks
    other = tuple(tuple(-weight for weight in pool) for pool in trained.early_exit.pools)
    monkeypatch.setattr(trained, "early_exit", dataclasses.replace(trained.early_exit, pools=other))
    photos = onnx_file.sample_photos(trained, None, 1)[:1]
    assert onnx_file.check(trained, (made / "net.onnx").read_bytes(), photos).probability > 0.01


def sign(model, about):
    """Write what a model says of itself, as somebody would who can."""
    about[SHA256] = sha256_of(model.SerializeToString(), about)
    own(model).value = json.dumps(about)


def varint(value):
    """Return a number as Protocol Buffers write it."""
    found = b""
    while value >= 128:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def own(model):
    """Return the entry of the metadata in which a model says what it is."""
    return next(entry for entry in model.metadata_props if entry.key == KEY)


def test_whole_numbers_answer_nearly_alike_and_what_they_cost_is_told(networks, made):
    trained, portable = networks
    before = (made / "net.onnx").read_bytes()
    photos, known = photos_of(trained, None)
    assert len(photos) == len(trained.train_names)
    model = quantised(onnx.load_from_string(before), photos[:6], 3)
    weights = {each.name: each.data_type for each in model.graph.initializer}
    convolved = [node for node in model.graph.node if node.op_type == "Conv"]
    assert convolved
    assert onnx.TensorProto.INT8 in weights.values()
    as_before = [node.input[1] in weights for node in convolved]
    of_a_look = len(convolved) // 3
    assert as_before == [i % of_a_look == 0 for i in range(len(convolved))], "all but the first of each look"
    graph = Graph()
    dense = graph("MatMul", "photos", graph.constant(np.zeros((3, 90)), np.float32))
    ports = [Port("photos", "photos", "float32", ["n", 3])], [Port(dense, "out", "float32", ["n", 90])]
    with pytest.raises(ConfigError, match=r"--int8: .* of this network's weights they hold 0 %"):
        quantised(graph.model(*ports, {}, {}), [], 1)
    known = list(known)
    lost = measure_lost(before, model.SerializeToString(), iter(known))
    assert lost.photos == len(trained.val_names)
    right = [portable.predict(photo).name == portable.class_names[label] for photo, label in known]
    assert lost.float32 == pytest.approx(np.mean(right))
    assert lost.agree >= 0.5
    refuse_lost(Lost(100, 0.80, 0.805, 0.9), 1.0)
    with pytest.raises(
        ExportError, match=r"1\.5 points.*81\.5 to 80\.0 %.*at most 1 may be.*Nothing was written"
    ):
        refuse_lost(Lost(100, 0.80, 0.815, 0.9), 1.0)


@pytest.mark.slow
def test_whole_numbers_from_the_command_line(made, racnn, tmp_path):
    words = ("export", made / "run" / "best.pt", "--int8", "--most-lost", 100)
    result = racnn(*words, "--out", tmp_path / "net.onnx")
    assert result.code == 0, result.err
    assert "in whole numbers" in result.out
    assert api.load(tmp_path / "net.onnx").about["int8"]["photos"] > 0
    assert racnn("predict", tmp_path / "net.onnx", made / "photos").code == 0
    refused = racnn(*words, "--out", tmp_path / "other.onnx", "--data", tmp_path / "nowhere")
    assert refused.code == 2
    assert "--int8: needs the photos" in refused.err


class TestForeign:
    """Files that are none of ours, or were changed, say so; nothing of them is run."""

    def refused(self, content, tmp_path, racnn):
        file = tmp_path / "bad.onnx"
        file.write_bytes(content)
        for words in (("predict", file, tmp_path), ("inspect", file)):
            result = racnn(*words)
            assert result.code == 2, result.out
            assert "bad.onnx" in result.err
            assert "Traceback" not in result.err
        with pytest.raises(CheckpointError):
            api.load(file)
        return result.err

    @pytest.mark.parametrize(
        "content", [b"", b"\x00", b"not a model", b"\xff" * 99, b"\x3a\x05abc"], ids=repr
    )
    def test_something_else(self, content, tmp_path, racnn):
        assert "expected" in self.refused(content, tmp_path, racnn)

    def test_cut_short_or_changed_anywhere(self, made, tmp_path, racnn):
        whole = (made / "net.onnx").read_bytes()
        for end in (10, len(whole) // 2, len(whole) - 1):
            assert "bad.onnx: " in self.refused(whole[:end], tmp_path, racnn)
        names = whole.rindex(b"class_names")
        for place in (5, names + 17, len(whole) - 3, *np.linspace(9, names, 12).astype(int)):
            changed = bytearray(whole)
            changed[place] ^= 1
            assert "bad.onnx: " in self.refused(bytes(changed), tmp_path, racnn)

    def test_another_programs_model(self, tmp_path, racnn):
        model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
        assert "another one" in self.refused(model.SerializeToString(), tmp_path, racnn)

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            ("domain", "operators of 'evil'"), ("loop", "a loop"), ("inner", "a loop"), ("external", "other files"),
            ("functions", "functions"), ("format", "export it anew"), ("sparse", "sparse"), ("early", "early_exit"),
            ("names", "control characters"), ("caution", "caution"), ("source", "source"),
        ],
    )  # fmt: skip
    def test_what_reaches_outside_of_itself(self, kind, said, made, tmp_path, racnn):
        model = onnx.load_from_string((made / "net.onnx").read_bytes())
        about = json.loads(own(model).value)
        if kind == "domain":
            model.graph.node.append(onnx.helper.make_node("Read", [], ["x"], domain="evil"))
        elif kind == "loop":
            model.graph.node.append(onnx.helper.make_node("Loop", [], ["x"]))
        elif kind == "inner":
            inner = onnx.helper.make_graph([onnx.helper.make_node("Scan", [], ["y"])], "i", [], [])
            model.graph.node.append(
                onnx.helper.make_node("If", [], ["x"], then_branch=inner, else_branch=inner)
            )
        elif kind == "external":
            tensor = model.graph.initializer.add(name="x", data_type=1, dims=[1], data_location=1)
            tensor.external_data.add(key="location", value="/etc/passwd")
        elif kind == "functions":
            model.functions.add(name="f", domain="d")
        elif kind == "sparse":
            values = onnx.TensorProto(name="v", data_type=1, dims=[1], data_location=1)
            node = onnx.helper.make_node("Constant", [], ["x"])
            node.attribute.add(name="sparse_value", type=11).sparse_tensor.values.CopyFrom(values)
            model.graph.node.append(node)
        elif kind == "names":
            about["class_names"][0] = "\x1b[31mred"
        elif kind == "early":
            about["early_exit"] = ["x"]
        elif kind == "caution":
            about["caution"]["names"] = about["caution"]["names"][:1]
        elif kind == "source":
            about["source"]["size"] = "q"
        else:
            about["format"] = 99
        sign(model, about)
        assert said in self.refused(model.SerializeToString(), tmp_path, racnn)

    @pytest.mark.parametrize("how", ["twice", "wide"])
    def test_what_another_reader_would_take_for_the_graph(self, how, made, tmp_path, racnn):
        """Protocol Buffers joins fields of the same number, and cuts a number to 32 bits."""
        model = onnx.load_from_string((made / "net.onnx").read_bytes())
        looping = onnx.helper.make_graph(
            [onnx.helper.make_node("Loop", [], ["x"])], "g", [], []
        ).SerializeToString()
        tag = b"\x3a" if how == "twice" else varint((7 << 3 | 2) | 1 << 34)
        extra = tag + varint(len(looping)) + looping
        about = json.loads(own(model).value)
        if how == "twice":
            about[SHA256] = sha256_of(extra + model.SerializeToString(), about)
            own(model).value = json.dumps(about)
        said = self.refused(extra + model.SerializeToString(), tmp_path, racnn)
        assert ("several graphs" if how == "twice" else "damaged") in said

    def test_a_graph_that_fails_when_it_is_run(self, made, tmp_path, racnn):
        model = onnx.load_from_string((made / "net.onnx").read_bytes())
        (node,) = (each for each in model.graph.node if "probabilities" in each.output)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7, 77]), "shape"))
        node.CopyFrom(onnx.helper.make_node("Reshape", [node.input[0], "shape"], ["probabilities"]))
        model.graph.output[0].type.tensor_type.ClearField("shape")
        model.graph.output[0].CopyFrom(
            onnx.helper.make_tensor_value_info(
                "probabilities", 1, [7, len(json.loads(own(model).value)["class_names"])]
            )
        )
        sign(model, json.loads(own(model).value))
        file = tmp_path / "bad.onnx"
        file.write_bytes(model.SerializeToString())
        result = racnn("predict", file, made / "photos")
        assert result.code == 2
        assert "bad.onnx: cannot be" in result.err

    def test_a_graph_that_is_none_of_ours_behind_a_good_digest(self, made, tmp_path, racnn):
        model = onnx.load_from_string((made / "net.onnx").read_bytes())
        about = json.loads(own(model).value)
        about["class_names"] = about["class_names"][:-1]
        about["caution"] = None
        sign(model, about)
        file = tmp_path / "bad.onnx"
        file.write_bytes(model.SerializeToString())
        result = racnn("predict", file, tmp_path)
        assert result.code == 2
        assert "classes are not those of the graph" in result.err


def test_what_was_not_chosen_is_not_there(made, racnn, tmp_path):
    """A run without levels, and the words for it."""
    content = (made / "net.onnx").read_bytes()
    model = onnx.load_from_string(content)
    about = read_about(content, "net")
    sign(model, about | {"caution": None, "early_exit": None})
    file = tmp_path / "plain.onnx"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="none were chosen before the export"):
        api.load(file, levels=True)
    refused = racnn("predict", file, made / "photos", "--early-exit")
    assert refused.code == 2
    assert "nothing was chosen before the export" in refused.err


def test_without_onnxruntime_it_says_what_is_missing(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="pip install onnxruntime"):
        api.load(made / "net.onnx")


@pytest.mark.slow
def test_a_network_that_was_trained_by_gradients_and_cuts_views_from_views(tiny, racnn, tmp_path):
    from racnn.engine.trainer import fit

    model = {"model__zoom_from": "parent", "model__apn": "paper", "model__antialias": False}
    fit(tiny(tmp_path / "run", **model), device=torch.device("cpu"))
    result = racnn("export", tmp_path / "run" / "best.pt", "--out", tmp_path / "net.onnx")
    assert result.code == 0, result.err
    assert "checked on" in result.out
    shutil.rmtree(tmp_path / "run")
    assert api.load(tmp_path / "net.onnx").early_exit is None
