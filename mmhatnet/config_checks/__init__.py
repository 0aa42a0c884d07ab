"""Checks of a config before anything is built, and one-line messages of constructor errors."""

from mmhatnet.config_checks.building import build_errors_as_messages
from mmhatnet.config_checks.channels import require_channels
from mmhatnet.config_checks.heads import require_fitting_heads
from mmhatnet.config_checks.loops import (
    drop_worker_settings,
    report_long_schedules,
    require_batches,
    require_fitting_loops,
)
from mmhatnet.config_checks.metrics import metrics_of, require_fitting_metrics
from mmhatnet.config_checks.pipelines import require_equal_shapes, require_masks_kept
from mmhatnet.config_checks.settings import (
    PACKAGES,
    parameters_of,
    require_complete,
    require_known_settings,
)
from mmhatnet.config_checks.unread import (
    loader_of,
    require_read,
    successor_of,
    top_level_of,
    users_of,
)

__all__ = [
    'PACKAGES',
    'build_errors_as_messages',
    'drop_worker_settings',
    'loader_of',
    'metrics_of',
    'parameters_of',
    'report_long_schedules',
    'require_batches',
    'require_channels',
    'require_complete',
    'require_equal_shapes',
    'require_fitting_heads',
    'require_fitting_loops',
    'require_fitting_metrics',
    'require_known_settings',
    'require_masks_kept',
    'require_read',
    'successor_of',
    'top_level_of',
    'users_of',
]
