"""One look at the data of a job before time is spent on it."""

import logging
import os
from collections.abc import Iterator

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DATASETS, init_default_scope

from mmhatnet.preflight.report import Report


def check_data(cfg: Config, *splits: str, every: bool = False) -> Report:
    """Looks at the data that a config names.

    Args:
        cfg (Config): The config.
        splits (str): 'train', 'val' or 'test'.
        every (bool): Whether to read all pictures and masks instead of a sample of them.

    Returns:
        Report: What was found. Nothing is changed, and nothing is refused here.
    """
    from mmhatnet.preflight.classification import check_classification
    from mmhatnet.preflight.detection import check_detection
    from mmhatnet.preflight.segmentation import check_segmentation

    checks = dict(mmdet=check_detection, mmseg=check_segmentation, mmpretrain=check_classification)
    check = checks.get(cfg.get('default_scope'))
    report = Report()
    if check is None:
        return report
    init_default_scope(cfg.default_scope)
    for split in splits:
        for settings in inner_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            # Asks the dataset itself what it would read, and reads nothing yet.
            dataset = DATASETS.build({**settings, 'pipeline': [], 'lazy_init': True})
            check(cfg, split, settings, dataset, report, every)
    return report


def require_sound_data(cfg: Config, *splits: str) -> None:
    """Refuses a job whose data are wrong, and logs what is odd about them.

    Args:
        cfg (Config): The config.
        splits (str): 'train', 'val' or 'test'.

    Raises:
        SystemExit: With all that is wrong, a sentence a line.
    """
    if os.environ.get('RANK', '0') != '0':
        return
    report = check_data(cfg, *splits)
    for note in report.notes:
        print_log(note, logger='current', level=logging.WARNING)
    if report.errors:
        raise SystemExit('\n'.join(report.errors))


def inner_datasets(settings: ConfigDict | None) -> Iterator[ConfigDict]:
    """Yields the settings of the datasets that read files, out of whatever wraps them."""
    settings = settings or {}
    if 'dataset' in settings:
        yield from inner_datasets(settings.dataset)
    elif 'datasets' in settings:
        for wrapped in settings.datasets:
            yield from inner_datasets(wrapped)
    elif settings:
        yield settings
