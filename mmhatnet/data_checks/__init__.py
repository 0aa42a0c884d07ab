"""Checks of the data of a job before time is spent on it.

The package needs MMEngine, mmcv and the framework of the job. It imports no backbone and nothing of
the command line, so that other projects can use it alone.
"""

from mmhatnet.data_checks.check import check_data, require_sound_data
from mmhatnet.data_checks.report import Report

__all__ = ['Report', 'check_data', 'require_sound_data']
