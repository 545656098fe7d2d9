"""A pseudo_box is what the scale's response shows of the whole photo, wherever the photo's random changes move it."""

import pytest
import torch

from racnn.data import build_data, eval_loader, train_loader
from racnn.models import RACNN
from racnn.models.racnn import make_phase
from racnn.models.racnn.losses import response_map
from racnn.models.racnn.pseudo_boxes import find_common_part, read_boxes, read_regions, target_region
from racnn.ops.ddt import common_part, descriptor_sums
from racnn.ops.heatmap import component_box, peak_point
from racnn.ops.regions import bounding_region, compose, relative
from racnn.sections import AugmentConfig, DataConfig

CPU = torch.device("cpu")
WHOLE = torch.tensor([[0.0, 0.0, 1.0]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = RACNN(num_classes=5, backbone="tiny", view_sizes=(32, 32, 32))
    torch.nn.init.normal_(model.apns[0].out.weight, std=0.5)
    return model.eval()


def batches(sizes=(3, 2)):
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randint(0, 256, (size, 3, 48, 48), generator=generator, dtype=torch.uint8),
            "label": torch.arange(size),
        }
        for size in sizes
    ]


def config_of(**changes):
    return make_phase(kind="apn_init", epochs=1, lr=0.1, **changes)


class TestReadBoxes:
    @pytest.mark.parametrize("enlarge", [1.0, 2.0])
    @pytest.mark.parametrize("response", ["sum", "cam", "ddt"])
    @torch.no_grad()
    def test_first_scale_reads_the_map_of_the_whole_photo(self, response, enlarge, model):
        config = config_of(response=response, level=0.3, trim=0.02, enlarge=enlarge)
        common = find_common_part(model, batches(), 1, config, device=CPU) if response == "ddt" else None
        boxes = read_boxes(model, batches(), 1, config, common=common, device=CPU)
        expected = []
        for batch in batches():
            output = model(batch["image"], num_scales=1)
            view = model.enlarged_view(1, batch["image"], output, enlarge)
            features, inner = model.extract_with_inner(1, view)
            weight = model.classifiers[0].weight if response == "cam" else None
            maps = response_map(features, weight=weight, labels=batch["label"])
            maps = common.response(inner) if common else maps
            expected.append(component_box(maps, 0.3, 0.02))
        torch.testing.assert_close(boxes, torch.cat(expected), atol=1e-4, rtol=0)

    @torch.no_grad()
    def test_second_scale_reads_its_own_view_and_answers_in_the_frame_of_the_source(self, model):
        boxes = read_boxes(model, batches((4,)), 2, config_of(target="peak"), device=CPU)
        (batch,) = batches((4,))
        output = model(batch["image"], num_scales=2)
        point = peak_point(output.scales[1].features.sum(dim=1))
        place = output.regions[1]
        torch.testing.assert_close(boxes[:, :2], place[:, :2] + place[:, 2:] * point)
        torch.testing.assert_close(boxes[:, 2:], boxes[:, :2])

    def test_leaves_batch_norm_and_weights_alone(self, model):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.train()
        read_boxes(model, batches(), 1, config_of(enlarge=2.0), device=CPU)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_can_be_stopped_after_a_batch(self, model):
        class Enough(Exception):
            pass

        def stop():
            raise Enough

        with pytest.raises(Enough):
            read_boxes(model, batches(), 1, config_of(), device=CPU, after_batch=stop)


class TestFindCommonPart:
    @pytest.mark.parametrize("scale", [1, 2])
    @torch.no_grad()
    def test_is_that_of_all_photos_together(self, scale, model):
        config = config_of(response="ddt", enlarge=1.5)
        found = find_common_part(model, batches(), scale, config, device=CPU)
        (images, labels) = (torch.cat([batch[key] for batch in batches()]) for key in ("image", "label"))
        output = model(images, num_scales=scale)
        view = model.enlarged_view(scale, images, output, 1.5)
        features, inner = model.extract_with_inner(scale, view)
        seen = response_map(features, weight=model.classifiers[scale - 1].weight, labels=labels)
        expected = common_part(descriptor_sums(inner, seen))
        torch.testing.assert_close(found.mean, expected.mean)
        torch.testing.assert_close(found.direction, expected.direction, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("shares", [([0], [1]), ([0, 1], [])], ids=["one each", "none for the second"])
    def test_processes_add_up(self, shares, model):
        """A process finds with the others' sums what a single one finds from all photos."""
        config = config_of(response="ddt")
        first, second = ([batches()[number] for number in share] for share in shares)
        seen: list = []

        def gather_first(rows):
            seen.extend(rows)
            return rows

        find_common_part(model, first, 1, config, device=CPU, gather=gather_first)
        found = find_common_part(model, second, 1, config, device=CPU, gather=lambda rows: [*seen, *rows])
        expected = find_common_part(model, batches(), 1, config, device=CPU)
        torch.testing.assert_close(found.mean, expected.mean)
        torch.testing.assert_close(found.direction, expected.direction)


class TestReadPlaces:
    @pytest.mark.parametrize("scale", [2, 3])
    @torch.no_grad()
    def test_are_where_the_recursion_looks_at_the_whole_photo(self, scale, model):
        boxes = read_regions(model, batches(), scale, device=CPU)
        places = torch.cat([model(batch["image"]).regions[scale - 1] for batch in batches()])
        torch.testing.assert_close(bounding_region(boxes), places)
        assert places.std(dim=0).max() > 0.01


class TestTaughtRegion:
    def test_component_is_the_bounding_square(self):
        box = torch.tensor([[-0.6, -0.2, 0.2, 0.3]])
        torch.testing.assert_close(target_region(box, WHOLE, "component"), torch.tensor([[-0.2, 0.05, 0.4]]))

    def test_only_what_the_view_shows_counts(self):
        box = torch.tensor([[-1.8, -0.5, 0.2, 0.5]])
        torch.testing.assert_close(target_region(box, WHOLE, "component"), torch.tensor([[-0.4, 0.0, 0.6]]))

    def test_is_given_in_the_frame_of_the_view(self):
        place, inner = torch.tensor([[0.2, -0.1, 0.5]]), torch.tensor([[-0.3, 0.2, 0.4]])
        x, y, half = compose(place, inner)[0]
        box = torch.stack([x - half, y - half, x + half, y + half])[None]
        torch.testing.assert_close(target_region(box, place, "component"), inner)
        torch.testing.assert_close(relative(place, compose(place, inner)), inner)

    def test_peak_is_half_the_view_around_the_point_moved_inside(self):
        point = torch.tensor([[0.1, 0.9, 0.1, 0.9]])
        torch.testing.assert_close(target_region(point, WHOLE, "peak"), torch.tensor([[0.1, 0.5, 0.5]]))

    def test_rectangles_are_taught_the_box_itself(self):
        box = torch.tensor([[-0.6, -0.2, 0.2, 0.3]])
        taught = target_region(box, WHOLE, "component", sides=2)
        torch.testing.assert_close(taught, torch.tensor([[-0.2, 0.05, 0.4, 0.25]]))
        within = torch.tensor([[-0.2, 0.05, 0.8, 0.5]])
        torch.testing.assert_close(
            target_region(box, within, "component", sides=2), torch.tensor([[0.0, 0.0, 0.5, 0.5]])
        )
        peak = target_region(torch.tensor([[0.1, 0.5, 0.1, 0.5]]), WHOLE, "peak", sides=2)
        torch.testing.assert_close(peak, torch.tensor([[0.1, 0.5, 0.5, 0.5]]))

    def test_what_a_closer_view_shows_is_taught_in_the_frame_of_the_first(self):
        place, point = torch.tensor([[0.25, 0.25, 0.5]]), torch.tensor([[0.35, 0.25, 0.35, 0.25]])
        inner = target_region(point, place, "peak")
        torch.testing.assert_close(inner, torch.tensor([[0.2, 0.0, 0.5]]))
        torch.testing.assert_close(
            target_region(point, place, "peak", frame=WHOLE), torch.tensor([[0.35, 0.25, 0.25]])
        )


@pytest.fixture(scope="module")
def data():
    config = DataConfig(
        dataset="synthetic",
        source_size=64,
        num_workers=0,
        batch_size=8,
        synthetic={"num_train": 32, "num_test": 8},
        augment=AugmentConfig(crop=0.75),
    )
    return build_data(config, seed=0), config


class TestLessonsFollowThePhotos:
    def test_like_the_annotated_boxes(self, data):
        found, config = data
        train = found.splits["train"]
        plain = [row for batch in eval_loader(train, config) for row in batch["box"]]
        train.pseudo_boxes = torch.stack(
            plain
        ).numpy()  # teach the true boxes: they must arrive where the boxes do
        moved = 0
        for batch in train_loader(found, config, seed=0, epoch=3):
            torch.testing.assert_close(batch["pseudo_box"], batch["box"], atol=2e-5, rtol=0)
            moved += int(
                (batch["pseudo_box"] - torch.stack(plain)[batch["index"]]).abs().amax(dim=1).gt(0.05).sum()
            )
            assert batch["parts"].shape[1] == len(found.part_names)
        assert moved > len(train) // 2

    def test_half_of_them_show_the_whole_photo(self, data):
        found, config = data
        train = found.splits["train"]
        train.pseudo_boxes = torch.tensor([-0.5, -0.25, 0.5, 0.25]).repeat(len(train), 1).numpy()
        loaders = [train_loader(found, config, seed=0, epoch=epoch) for epoch in range(5)]
        pseudo_boxes = torch.cat([batch["pseudo_box"] for loader in loaders for batch in loader])
        sides = (pseudo_boxes[:, 2:] - pseudo_boxes[:, :2]) / torch.tensor([1.0, 0.5])
        whole, cropped = (sides - 1.0).abs().lt(1e-3).all(dim=1), (sides - 1 / 0.75).abs().lt(0.02).all(dim=1)
        assert (whole | cropped).all()
        assert 0.3 < whole.float().mean() < 0.7

    def test_and_only_while_there_are_any(self, data):
        found, config = data
        train = found.splits["train"]
        train.pseudo_boxes = torch.zeros(len(train), 4).numpy()
        assert "pseudo_box" in next(iter(eval_loader(train, config)))
        train.pseudo_boxes = None
        assert "pseudo_box" not in next(iter(train_loader(found, config, seed=0, epoch=0)))
