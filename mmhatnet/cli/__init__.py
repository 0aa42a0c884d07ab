"""The command line: configs, checks and screen of a job. Its options are in ``mmhatnet_cli``."""

from mmhatnet.cli.configs import find_config, imports_of, read_config
from mmhatnet.cli.job import (
    build_runner,
    find_device,
    is_first_process,
    load_config,
    require_datasets,
    require_sound_job,
    require_writable,
)
from mmhatnet.cli.options import merge_options, parse_settings
from mmhatnet.cli.overview import describe_job, describe_resume
from mmhatnet.cli.progress import TestProgress, TrainingProgress
from mmhatnet.cli.screen import Screen

__all__ = [
    'Screen',
    'TestProgress',
    'TrainingProgress',
    'build_runner',
    'describe_job',
    'describe_resume',
    'find_config',
    'find_device',
    'imports_of',
    'is_first_process',
    'load_config',
    'merge_options',
    'parse_settings',
    'read_config',
    'require_datasets',
    'require_sound_job',
    'require_writable',
]
