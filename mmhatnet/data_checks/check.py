"""Checks the data of a job before time is spent on it."""

import logging
import sys
from collections.abc import Callable

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS, init_default_scope
from rich.console import Console

from mmhatnet.config_walk import build_unread, class_of, datasets_of, dicts_of
from mmhatnet.data_checks.report import Job, Report, preview
from mmhatnet.errors import DataError


def check_data(
    cfg: Config, *splits: str, every: bool = False, console: Console | None = None
) -> Report:
    """Checks the data that a config names.

    Args:
        cfg (Config): The config.
        splits (str): 'train', 'val' or 'test'.
        every (bool): Whether to read all images and masks instead of a sample of them.
        console (Console | None): Where progress is shown.

    Returns:
        Report: What was found. Nothing is changed, and nothing is refused.
    """
    report = Report(console=console)
    check = _check_of(cfg.get('default_scope'))
    if check is None:
        report.notes.append(
            f'The data are not checked, because default_scope is {cfg.get("default_scope")!r}.'
        )
        return report
    init_default_scope(cfg.default_scope)
    seen = {}
    for split in splits:
        reads = [cfg.get(f'{split}_{part}') for part in ('dataloader', 'evaluator')]
        if reads[0] is None:
            continue
        if same := [other for other, what in seen.items() if what == reads]:
            report.facts.append(f'{split} reads what {same[0]} reads.')
            continue
        seen[split] = reads
        datasets = []
        for settings in datasets_of(cfg, split):
            where = f'{split}_dataloader.dataset'
            try:
                dataset = build_unread(settings)
                wrong = _text_instead_of_names(where, dataset.metainfo.get('classes'))
                datasets.append(dataset)
                if wrong:
                    report.errors.append(wrong)
                else:
                    check(Job(cfg, split, settings, dataset, report, every))
            except Exception as error:  # a data check must not end a job
                if why := _why_not_built(cfg.default_scope, where, settings):
                    report.errors.append(why)
                    continue
                report.notes.append(
                    f'{split}_dataloader: the data are not fully checked, because a '
                    f'{settings.get("type")} is not as expected '
                    f'({type(error).__name__}: {error}).'
                )
        if wrong := _why_not_joined(cfg, split, datasets):
            report.errors.append(wrong)
    report.make_printable()
    return report


def _why_not_joined(cfg: Config, split: str, datasets: list[BaseDataset]) -> str | None:
    """Returns why the datasets of a split cannot be one ConcatDataset."""
    where = f'{split}_dataloader'
    wrappers = [part for _, part in dicts_of(cfg[where].dataset) if 'datasets' in part]
    classes = [class_of(DATASETS, part) for part in wrappers]
    if not all(found and issubclass(found, ConcatDataset) for found in classes):
        return None
    # Where each image says what its labels mean, they may differ.
    metas = [one.metainfo for one in datasets if not getattr(one, 'return_classes', False)]
    names = [list(meta['classes']) for meta in metas if meta.get('classes') is not None]
    if other := next((one for one in names if one != names[0]), None):
        of_files = ', and each file all of these categories' * (cfg.default_scope == 'mmdet')
        return (
            f'{where}: the classes of its datasets differ, ({preview(names[0], 8)}) and '
            f'({preview(other, 8)}), so that a label means something else in each; give all the '
            f'same metainfo=dict(classes=...){of_files}.'
        )
    ignored = [part.get('ignore_keys') or [] for part in wrappers]
    ignored = [key for keys in ignored for key in ([keys] if isinstance(keys, str) else keys)]
    for key in dict.fromkeys(key for meta in metas for key in meta if key not in ignored):
        if len({repr(meta.get(key)) for meta in metas}) > 1:
            return (
                f'{where}: metainfo[{key!r}] of its datasets differs, so that they have none in '
                f'common; give all the same, or the ConcatDataset ignore_keys={[*ignored, key]}.'
            )
    return None


def _why_not_built(scope: str, where: str, settings: ConfigDict) -> str | None:
    if isinstance(settings.get('ann_file'), (list, tuple)):
        return (
            f'{where}: ann_file is a list, and a {settings.get("type")} reads one file: write one '
            'dataset for each into a ConcatDataset.'
        )
    wrong = _text_instead_of_names(where, (settings.get('metainfo') or {}).get('classes'))
    if not wrong and scope == 'mmseg':
        from mmhatnet.data_checks.segmentation import why_not_built

        return why_not_built(where, settings)
    return wrong


def _text_instead_of_names(where: str, classes: object) -> str | None:
    if not isinstance(classes, str):
        return None
    return (
        f'{where}: metainfo.classes is the text {classes!r}, of which each letter would be a '
        f'class; a tuple of one name needs a comma, classes=({classes!r},).'
    )


def _check_of(scope: str | None) -> Callable | None:
    # Often only one of the three frameworks is installed.
    match scope:
        case 'mmdet':
            from mmhatnet.data_checks.detection import check_detection as check
        case 'mmseg':
            from mmhatnet.data_checks.segmentation import check_segmentation as check
        case 'mmpretrain':
            from mmhatnet.data_checks.classification import check_classification as check
        case _:
            return None
    return check


def require_sound_data(cfg: Config, *splits: str) -> Report:
    """Refuses a job whose data are wrong, and logs warnings about oddities.

    Args:
        cfg (Config): The config.
        splits (str): 'train', 'val' or 'test'.

    Returns:
        Report: What was found.

    Raises:
        DataError: If data are wrong, with a line for each fault.
    """
    report = check_data(cfg, *splits, console=Console(file=sys.stderr))
    for note in dict.fromkeys(report.notes):
        print_log(note, logger='current', level=logging.WARNING)
    if report.errors:
        hint = 'Nothing was started. --no-check skips this data check.'
        raise DataError('\n'.join(dict.fromkeys([*report.errors, hint])))
    return report
