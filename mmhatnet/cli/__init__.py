"""The command line: the options of the tools, their configs and their checks."""

from mmhatnet.cli.configs import imports_of, read_config
from mmhatnet.cli.job import (
    build_runner,
    exit_on_error,
    find_device,
    is_first_process,
    load_config,
    require_datasets,
    require_sound_job,
    require_writable,
)
from mmhatnet.cli.options import (
    SettingsAction,
    add_common_options,
    add_settings_option,
    inference_parser,
    local_path,
    merge_options,
    path,
)
from mmhatnet.cli.overview import describe_job, describe_resume
from mmhatnet.cli.progress import TestProgress, TrainingProgress
from mmhatnet.cli.screen import Screen

__all__ = [
    'Screen',
    'SettingsAction',
    'TestProgress',
    'TrainingProgress',
    'add_common_options',
    'add_settings_option',
    'build_runner',
    'describe_job',
    'describe_resume',
    'exit_on_error',
    'find_device',
    'imports_of',
    'inference_parser',
    'is_first_process',
    'load_config',
    'local_path',
    'merge_options',
    'path',
    'read_config',
    'require_datasets',
    'require_sound_job',
    'require_writable',
]
