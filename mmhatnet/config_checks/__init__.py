"""Checks of a config before anything is built, and one-line messages of constructor errors."""

from mmhatnet.config_checks.building import build_errors_as_messages
from mmhatnet.config_checks.channels import require_channels
from mmhatnet.config_checks.settings import (
    parameters_of,
    require_complete,
    require_known_settings,
)

__all__ = [
    'build_errors_as_messages',
    'parameters_of',
    'require_channels',
    'require_complete',
    'require_known_settings',
]
