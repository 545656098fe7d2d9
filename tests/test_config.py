"""A configuration is right as a whole, or every mistake in it is named."""

from pathlib import Path

import pytest
import yaml

from racnn.config import Config, dump_config, load_config, parse_config
from racnn.errors import ConfigError
from racnn.models.phase import AlternationConfig
from racnn.models.racnn.schedules import SCHEDULES
from racnn.sections import DEFAULT_BOUNDS, parse_ranges

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
PHASE = {"kind": "classification", "epochs": 1, "lr": 0.1}


def mistakes(values):
    """Return the lines of the message about a wrong configuration."""
    with pytest.raises(ConfigError) as caught:
        parse_config({"schedule": [PHASE], **values}, origin="file.yaml")
    first, *lines = str(caught.value).splitlines()
    assert first == "file.yaml:"
    return [line.strip() for line in lines]


def refusal(*settings):
    """Return the message about wrong ``--set`` strings."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, settings)
    return str(caught.value)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


# --- what is right ----------------------------------------------------------------------------------------------------


def test_there_are_configs():
    assert {"demo.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_in_the_repository_parses(path):
    config = load_config(path)
    assert parse_config(dump_config(config), origin="dump") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_in_the_repository_begins_with_a_comment(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20


def test_defaults_alone_are_a_configuration():
    config = load_config(None)
    assert config.model.num_scales == 3
    assert config.model.region_bounds() == DEFAULT_BOUNDS
    assert config.schedule == load_config(None, ["schedule=recipe"]).schedule


@pytest.mark.parametrize("num_scales", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_named_schedule_fits_any_number_of_scales(name, num_scales):
    sizes = [32] * num_scales
    config = load_config(None, [f"schedule={name}", f"model.view_sizes={sizes}"])
    phases = config.phases()
    trained = {
        scale for p in phases if p.kind == "classification" for scale in p.scales or range(1, num_scales + 1)
    }
    assert trained == set(range(1, num_scales + 1))
    assert {p.scales for p in phases if p.kind == "apn_init"} == {
        (region,) for region in range(1, num_scales)
    }
    assert any(isinstance(entry, AlternationConfig) for entry in config.schedule) == (num_scales > 1)
    assert (phases[-1].kind == "fusion") == (num_scales > 1)


@pytest.mark.parametrize(("side", "enlarge"), [(224, 2.0), (224.0, 2.0), (448, 1.0)])
def test_the_recipe_reads_the_object_from_a_fine_map(side, enlarge):
    config = load_config(None, [f"model.view_sizes=[{side}, 224, 224]"])
    first, second = (phase for phase in config.phases() if phase.kind == "apn_init")
    assert (first.response, first.enlarge, first.level, first.trim) == ("ddt", enlarge, 0.1, 0.02)
    assert (second.target, second.response) == ("peak", "cam")


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_apn_is_pretrained_before_the_alternation(name):
    kinds = [
        getattr(entry, "kind", "alternation") for entry in load_config(None, [f"schedule={name}"]).schedule
    ]
    assert max(i for i, kind in enumerate(kinds) if kind == "apn_init") < kinds.index("alternation")


def test_region_bounds_default_to_one_pair_a_region():
    config = load_config(None, ["model.view_sizes=[32, 32, 32, 32]"])
    assert config.model.region_bounds() == (DEFAULT_BOUNDS[0], DEFAULT_BOUNDS[1], DEFAULT_BOUNDS[1])
    given = load_config(None, ["model.bounds=[[0.1, 0.5], [0.4, 0.6]]"])
    assert given.model.region_bounds() == ((0.1, 0.5), (0.4, 0.6))


def test_a_dump_parses_to_the_same_configuration():
    settings = [
        "run.out=runs/x",
        "data.root=/photos/birds",
        "data.classes=1-3,7",
        "data.augment.flip=false",
        "model.bounds=[[0.1, 0.5], [0.4, 0.6]]",
        "schedule.0.patience=3",
        "schedule.5.rounds=7",
    ]
    config = load_config(None, settings)
    plain = dump_config(config)
    assert parse_config(plain, origin="dump") == config
    assert parse_config(yaml.safe_load(yaml.safe_dump(plain)), origin="yaml") == config
    assert config != load_config(None, settings[:-1])


# --- --set ------------------------------------------------------------------------------------------------------------


def test_set_reaches_nested_keys_and_keeps_their_neighbours():
    config = load_config(None, ["data.augment.color=0.5", "data.batch_size=3"])
    assert config.data.augment.color == 0.5
    assert config.data.batch_size == 3
    assert config.data.augment.crop == Config.model_fields["data"].default.augment.crop


def test_set_reaches_positions_of_lists():
    config = load_config(None, ["schedule.1.epochs=17", "schedule.5.alternate.1.epochs=19"])
    assert config.schedule[1].epochs == 17
    assert config.schedule[5].alternate[1].epochs == 19
    assert config.schedule[0].epochs != 17


def test_set_goes_on_top_of_the_file(tmp_path):
    path = write(tmp_path / "a.yaml", "data: {batch_size: 4, num_workers: 1}\nschedule: paper\n")
    config = load_config(path, ["data.batch_size=5", "schedule.0.lr=0.5"])
    assert (config.data.batch_size, config.data.num_workers) == (5, 1)
    assert config.schedule[0].lr == 0.5
    assert config.schedule[0].target == "peak"  # of the paper's schedule


def test_the_later_of_two_settings_wins():
    assert load_config(None, ["run.seed=1", "run.seed=2"]).run.seed == 2


def test_set_can_name_the_schedule_and_then_change_it():
    config = load_config(None, ["schedule.0.epochs=41", "schedule=paper"])
    assert config.schedule[0].epochs == 41
    assert config.schedule[0].target == "peak"


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_a_number_in_scientific_notation_is_a_float(text, tmp_path):
    assert load_config(None, [f"schedule.0.lr={text}"]).schedule[0].lr == 1e-4
    path = write(tmp_path / "a.yaml", f"schedule:\n  - {{kind: classification, epochs: 1, lr: {text}}}\n")
    assert load_config(path).schedule[0].lr == 1e-4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("run.seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("run.seed=[1", "not valid YAML"),
        ("schedule.99.epochs=1", "'99' is not a position in schedule, which has 7 items"),
        ("schedule.first.epochs=1", "'first' is not a position in schedule"),
        ("run.seed.deeper=1", "run.seed"),
    ],
)
def test_a_setting_that_cannot_be_applied_is_quoted(text, told):
    message = refusal("run.seed=1", text)
    assert text in message or text.partition("=")[0] in message
    assert told in message


def test_a_file_is_not_blamed_for_what_was_set(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("run:\n  seed: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["model.foo=3", "run.seeds=4"])
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "--set run.seeds=4",
        "--set model.foo=3",
    ]
    file.write_text("run:\n  seed: 1\n  bar: 2\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["model.foo=3"])
    assert str(caught.value).splitlines()[0] == f"{file}:"


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"modle": {}}, "modle: unknown key (did you mean 'model'?)"),
        ({"data": {"batch_sise": 8}}, "data.batch_sise: unknown key (did you mean 'batch_size'?)"),
        ({"data": {"augment": {"flp": True}}}, "data.augment.flp: unknown key (did you mean 'flip'?)"),
        (
            {"schedule": [{**PHASE, "optimiser": "sgd"}]},
            "schedule.0.optimiser: unknown key (did you mean 'optimizer'?)",
        ),
        (
            {"schedule": [{"alternate": [PHASE], "round": 2}]},
            "schedule.0.round: unknown key (did you mean 'rounds'?)",
        ),
        (
            {"schedule": [{"alternate": [PHASE], "epochs": 2}]},
            "schedule.0.epochs: unknown key; this entry alternates: schedule.0.alternate.0.epochs and so on, and rounds",
        ),
        (
            {"schedule": [PHASE, {"alternate": [PHASE, {**PHASE, "epoch": 2}]}]},
            "schedule.1.alternate.1.epoch: unknown key (did you mean 'epochs'?)",
        ),
        ({"run": {"xyzzy": 1}}, "run.xyzzy: unknown key"),
    ],
)
def test_an_unknown_key_is_named_with_its_path_and_its_nearest_neighbour(values, line):
    assert line in mistakes(values)


@pytest.mark.parametrize(
    ("values", "path", "shown"),
    [
        ({"data": {"num_workers": "two"}}, "data.num_workers", "'two'"),
        ({"data": {"augment": {"flip": "perhaps"}}}, "data.augment.flip", "'perhaps'"),
        ({"run": 5}, "run", "5"),
        ({"model": {"view_sizes": 32}}, "model.view_sizes", "32"),
        ({"schedule": "recipe"}, "schedule", "'recipe'"),
        ({"schedule": ["fusion"]}, "schedule.0", "'fusion'"),
        ({"schedule": [{**PHASE, "kind": "rank"}]}, "schedule.0.kind", "'rank'"),
        ({"run": {"precision": "fp16"}}, "run.precision", "'fp16'"),
        ({"data": {"val_fraction": 1.0}}, "data.val_fraction", "1.0"),
        ({"data": {"batch_size": 0}}, "data.batch_size", "0"),
        ({"model": {"steepness": float("nan")}}, "model.steepness", "nan"),
        ({"model": {"bounds": [[0.2, 1.5], [0.2, 0.5]]}}, "model.bounds.0.1", "1.5"),
        ({"schedule": [{**PHASE, "lr": -1}]}, "schedule.0.lr", "-1"),
        ({"schedule": [{**PHASE, "scales": [0]}]}, "schedule.0.scales.0", "0"),
        ({"data": {"classes": "7-3"}}, "data.classes", "runs backwards"),
    ],
)
def test_a_wrong_value_is_shown_with_its_path(values, path, shown):
    (line,) = [line for line in mistakes(values) if line.startswith(f"{path}: ")]
    assert shown in line


@pytest.mark.parametrize("key", ["kind", "epochs", "lr"])
def test_a_phase_without_what_it_needs_is_refused(key):
    phase = {name: value for name, value in PHASE.items() if name != key}
    assert f"schedule.0.{key}: field required" in mistakes({"schedule": [phase]})


def test_all_mistakes_are_reported_at_once():
    lines = mistakes(
        {
            "rnu": {},
            "data": {"batch_sise": 1, "val_fraction": 2, "num_workers": "two"},
            "schedule": [{**PHASE, "epochs": 0}],
        }
    )
    paths = {line.partition(":")[0] for line in lines}
    assert {"rnu", "data.batch_sise", "data.val_fraction", "data.num_workers", "schedule.0.epochs"} <= paths


def test_a_mistake_in_one_phase_is_not_reported_as_an_empty_schedule():
    assert mistakes({"schedule": [{**PHASE, "epochs": 0}]}) == [
        "schedule.0.epochs: input should be greater than or equal to 1, got 0"
    ]


@pytest.mark.parametrize("key", ["phase", "alternation"])
def test_a_key_called_like_a_kind_of_schedule_entry_is_an_unknown_key(key):
    assert any(line.startswith(f"{key}: unknown key") for line in mistakes({key: 1}))
    assert any(line.startswith(f"run.{key}: unknown key") for line in mistakes({"run": {key: 1}}))


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("classification", "lr"),
        ("classification", "weight_decay"),
        ("classification", "jitter"),
        ("classification", "clip_grad"),
        ("classification", "head_lr_factor"),
        ("ranking", "margin"),
    ],
)
def test_an_infinite_number_is_refused(kind, key):
    lines = mistakes({"schedule": [{**PHASE, "kind": kind, key: float("inf")}]})
    assert any(line.startswith(f"schedule.0.{key}: ") for line in lines)


@pytest.mark.parametrize(
    ("kind", "key", "value", "owner"),
    [
        ("ranking", "init_from", 1, "classification"),
        ("fusion", "label_smoothing", 0.2, "classification"),
        ("classification", "target", "peak", "apn_init"),
        ("fusion", "level", 0.5, "apn_init"),
        ("apn_init", "margin", 0.1, "ranking"),
    ],
)
def test_a_key_of_another_kind_of_phase_is_refused(kind, key, value, owner):
    scales = [1] if kind == "apn_init" else []
    lines = mistakes({"schedule": [PHASE, {**PHASE, "kind": kind, "scales": scales, key: value}]})
    (line,) = [text for text in lines if f"'{key}'" in text]
    assert line.startswith("schedule.1: ")
    assert owner in line
    assert kind in line


@pytest.mark.parametrize(
    ("changes", "key", "owner"),
    [
        ({"optimizer": "adamw", "momentum": 0.5}, "momentum", "sgd"),
        ({"kind": "apn_init", "scales": [1], "target": "peak", "level": 0.5}, "level", "component"),
        ({"scales": [1], "jitter": 0.5}, "jitter", "finer scales"),
        ({"scales": [2], "init_from": 2}, "init_from", "itself"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(changes, key, owner):
    (line,) = mistakes({"schedule": [{**PHASE, **changes}]})
    assert line.startswith("schedule.0: ")
    assert key in line
    assert owner in line


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "adamw"}, {"kind": "apn_init", "scales": [1], "target": "peak"}, {"scales": [1]}],
)
def test_a_dumped_phase_can_be_read_again(changes):
    config = parse_config({"schedule": [{**PHASE, **changes}]}, origin="test")
    assert parse_config(dump_config(config), origin="test") == config


def test_a_fusion_of_some_scales_is_refused():
    lines = mistakes({"schedule": [{**PHASE, "kind": "fusion", "scales": [1]}]})
    assert any(line.startswith("schedule.0: 'scales'") for line in lines)


@pytest.mark.parametrize(
    ("kind", "changes", "scale"),
    [
        ("classification", {"scales": [4]}, 4),
        ("apn_init", {"scales": [3]}, 3),
        ("ranking", {"scales": [1, 3]}, 3),
        ("classification", {"init_from": 4}, 4),
    ],
)
def test_a_phase_of_a_scale_that_the_model_lacks_is_refused(kind, changes, scale):
    (line,) = mistakes({"schedule": [{**PHASE, "kind": kind, **changes}]})
    assert f"{kind} phase names scale {scale}" in line
    assert "3 scales" in line


@pytest.mark.parametrize("scales", [[], [1, 2]])
def test_an_apn_init_phase_that_teaches_more_than_one_region_is_refused(scales):
    (line,) = mistakes({"schedule": [{**PHASE, "kind": "apn_init", "scales": scales}]})
    assert "teaches one region" in line
    assert "scales: [1]" in line


def test_a_phase_of_regions_is_refused_where_there_is_one_scale():
    (line,) = mistakes({"model": {"view_sizes": [32]}, "schedule": [{**PHASE, "kind": "ranking"}]})
    assert "ranking" in line


def test_a_phase_inside_an_alternation_is_checked_too():
    (line,) = mistakes({"schedule": [{"alternate": [{**PHASE, "scales": [9]}]}]})
    assert "scale 9" in line


def test_a_scale_named_twice_is_refused():
    assert any("schedule.0" in line for line in mistakes({"schedule": [{**PHASE, "scales": [1, 1]}]}))


def test_bounds_must_be_as_many_as_the_regions():
    (line,) = mistakes({"model": {"bounds": [[0.2, 0.9]]}})
    assert line.startswith("model: ")
    assert "1 pairs" in line
    assert "2 regions" in line


def test_bounds_must_be_in_order():
    (line,) = mistakes({"model": {"bounds": [[0.2, 0.9], [0.5, 0.5]]}})
    assert "[0.5, 0.5]" in line


def test_a_misspelt_schedule_names_the_nearest():
    message = refusal("schedule=recepi")
    assert "'recepi'" in message
    assert "did you mean 'recipe'?" in message
    assert "paper" in message


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["run: {seed: 1}\nrun: {seed: 2}\n", "run:\n  seed: 1\n  seed: 2\n", "schedule:\n  - {lr: 1, lr: 2}\n"],
)
def test_a_key_given_twice_is_refused(text, tmp_path):
    path = write(tmp_path / "twice.yaml", text)
    with pytest.raises(ConfigError, match=r"twice\.yaml.*\n*.*key '(run|seed|lr)' stands twice"):
        load_config(path)


@pytest.mark.parametrize(("text", "found"), [("- a\n- b\n", "list"), ("just words\n", "str"), ("7\n", "int")])
def test_a_file_that_is_no_mapping_is_refused(text, found, tmp_path):
    path = write(tmp_path / "odd.yaml", text)
    with pytest.raises(ConfigError, match=rf"odd\.yaml: expected 'key: value' lines, found {found}"):
        load_config(path)


@pytest.mark.parametrize(
    "content", [b"run: [1\n", b"run: \xff\xfe\n", b"run: !!python/object/apply:os.abort []\n"]
)
def test_a_file_that_is_not_plain_yaml_is_refused(content, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML"):
        load_config(path)


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load_config(write(tmp_path / "empty.yaml", "# nothing\n")) == load_config(None)


def test_a_missing_file_names_its_nearest_sibling(tmp_path):
    write(tmp_path / "birds.yaml", "")
    write(tmp_path / "cars_of_stanford.yaml", "")
    with pytest.raises(
        ConfigError, match=r"brids\.yaml: no such configuration file \(did you mean 'birds\.yaml'\?\)"
    ):
        load_config(tmp_path / "brids.yaml")
    with pytest.raises(ConfigError, match=r"no such configuration file$"):
        load_config(tmp_path / "nowhere" / "brids.yaml")


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ids"),
    [("3", [3]), ("1-3", [1, 2, 3]), ("9, 1 - 2,2", [1, 2, 9]), ("5-5", [5]), ("10-11,2", [2, 10, 11])],
)
def test_ranges_are_sorted_ids_without_repeats(text, ids):
    assert parse_ranges(text) == ids


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "1-2-3", "3-1", "1.5"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match=r"expected ids|runs backwards"):
        parse_ranges(text)


def test_a_shared_backbone_refuses_phases_that_would_let_other_scales_drift():
    with pytest.raises(ConfigError, match="must train all scales"):
        load_config(None, ["model.shared_backbone=true"])
    assert load_config(None, ["model.shared_backbone=true", "schedule=paper"]).model.shared_backbone


@pytest.mark.parametrize("kind", ["apn_init", "ranking"])
def test_a_phase_about_regions_needs_two_scales(kind):
    phase = f"{{kind: {kind}, epochs: 1, lr: 0.1}}"
    with pytest.raises(ConfigError, match="at least two"):
        load_config(None, ["model.view_sizes=[32]", f"schedule=[{phase}]"])


def test_stages_without_weights_cannot_be_frozen():
    with pytest.raises(ConfigError, match=r"model: frozen_stages is 2, but without weights"):
        load_config(None, ["model.frozen_stages=2"])
    assert load_config(None, ["model.frozen_stages=2", "model.weights=imagenet"]).model.frozen_stages == 2


RANKING = {"kind": "ranking", "epochs": 1, "lr": 0.1}


@pytest.mark.parametrize(
    ("fraction", "photos", "said"),
    [
        (0.0, "held_out", "needs data.held_out_fraction"),
        (0.2, "train", "no phase of the schedule has photos held_out"),
    ],
)
def test_held_out_photos_must_be_there_and_be_used(fraction, photos, said):
    values = {"data": {"held_out_fraction": fraction}, "schedule": [PHASE, {**RANKING, "photos": photos}]}
    assert any(said in line for line in mistakes(values))


def test_held_out_photos_can_be_given_to_ranking():
    values = {"data": {"held_out_fraction": 0.2}, "schedule": [PHASE, {**RANKING, "photos": "held_out"}]}
    assert [phase.photos for phase in parse_config(values, origin="test").phases()] == ["train", "held_out"]


@pytest.mark.parametrize(
    "phase",
    [
        {**PHASE, "scales": [1], "jitter": 0.0},
        {**PHASE, "optimizer": "adamw", "momentum": 0.8},
        {**PHASE, "kind": "apn_init", "scales": [1], "target": "peak", "level": 0.5},
    ],
)
def test_a_stored_configuration_may_hold_keys_that_do_nothing(phase):
    """An earlier version let them pass, and its checkpoints must stay readable."""
    (line,) = mistakes({"schedule": [phase]})
    assert "does nothing" in line
    config = parse_config({"schedule": [phase]}, origin="best.pt", stored=True)
    assert parse_config(dump_config(config), origin="best.pt", stored=True).phases()[0].kind == phase["kind"]


@pytest.mark.parametrize("changes", [{"jitter": 0.5}, {"init_from": 1}])
def test_a_network_of_one_scale_has_nothing_to_shake_or_to_start_from(changes):
    (line,) = mistakes({"model": {"view_sizes": [32]}, "schedule": [{**PHASE, **changes}]})
    assert line.startswith(f"schedule.0: '{next(iter(changes))}'")


def test_fusion_joins_scales_that_were_trained():
    fusion = {"kind": "fusion", "epochs": 1, "lr": 0.01}
    one, two = ({"kind": "classification", "scales": [s], "epochs": 1, "lr": 0.01} for s in (1, 2))
    parse_config({"model": {"view_sizes": [32, 32]}, "schedule": [two, one, fusion]}, origin="test")
    parse_config(
        {"model": {"view_sizes": [32, 32]}, "schedule": [{**one, "scales": []}, fusion]}, origin="test"
    )
    for schedule in ([fusion], [one, fusion], [one, fusion, two]):
        with pytest.raises(
            ConfigError, match=r"schedule\.\d: fusion joins all scales, .* before it trains (1, )?2"
        ):
            parse_config({"model": {"view_sizes": [32, 32]}, "schedule": schedule}, origin="test")


def test_compiling_and_computing_again_exclude_each_other():
    (line,) = mistakes({"run": {"compile": True, "activation_checkpointing": True}, "schedule": [PHASE]})
    assert "exclude each other" in line


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "data.batchsize=8",
            "--set data.batchsize=8: data.batchsize: unknown key (did you mean 'batch_size'?)",
        ),
        ("batch_size=8", "--set batch_size=8: batch_size: unknown key (did you mean 'data.batch_size'?)"),
        ("model.view_sizes=64,64", "model.view_sizes: expected a list, in square brackets, got '64,64'"),
        ("schedule.0.epochs=0", "--set schedule.0.epochs=0: schedule.0.epochs: "),
    ],
)
def test_a_mistake_in_set_is_not_blamed_on_the_file(given, told):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [given])
    assert told in str(caught.value)


def test_a_mistake_in_the_file_is_not_blamed_on_set(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {batchsize: 8}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "a.yaml", ["data.batch_size=8"])
    assert "--set" not in str(caught.value)


def test_a_choice_of_numbers_is_set_as_a_number():
    settings = [
        "data.dataset=digits",
        "data.augment.crop=1",
        "data.augment.flip=false",
        "data.digits.count=2",
    ]
    assert load_config(None, settings).data.digits.count == 2
    with pytest.raises(ConfigError, match=r"data\.digits\.count: input should be 1 or 2, got 3"):
        load_config(None, ["data.digits.count=3"])
