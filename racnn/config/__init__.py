"""The configuration: what can be set (``schema``), named schedules (``schedules``), and how it is read (``reading``)."""

from racnn.config.reading import dump_config, load_config, parse_config, read_yaml
from racnn.config.schema import AlternationConfig, Config
from racnn.models.racnn.schedules import SCHEDULES, paper_schedule, recipe_schedule
from racnn.sections import (
    DEFAULT_BOUNDS,
    AugmentConfig,
    DataConfig,
    ModelConfig,
    parse_ranges,
)

__all__ = [
    "DEFAULT_BOUNDS",
    "SCHEDULES",
    "AlternationConfig",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "dump_config",
    "load_config",
    "paper_schedule",
    "parse_config",
    "parse_ranges",
    "read_yaml",
    "recipe_schedule",
]
