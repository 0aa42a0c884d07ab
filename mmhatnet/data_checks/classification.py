"""Checks of the folders and images of a classifier."""

import os
from collections import Counter

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import list_from_file
from mmpretrain.datasets import CustomDataset
from mmpretrain.datasets.custom import find_folders

from mmhatnet.config_walk import dicts_of, type_name
from mmhatnet.data_checks.images import (
    check_number,
    datasets_of_training,
    files_below,
    is_local,
    paths_exist,
    read_images,
    refuse_circle,
    refuse_missing,
    refuse_narrow,
    size_rows,
)
from mmhatnet.data_checks.report import Job, preview


def check_classification(job: Job) -> None:
    """Checks one dataset of a classifier."""
    dataset = job.dataset
    if not _reads_folders(dataset):
        job.note(f'{type_name(job.settings)} is not checked, because its files are unknown')
        return
    if not paths_exist(job, dict(data_prefix=dataset.img_prefix, ann_file=dataset.ann_file)):
        return
    if dataset.ann_file:
        paths, counts = _read_list(job)
        classes = dataset.CLASSES
    elif refuse_circle(job, dataset.img_prefix):
        return
    else:
        paths, counts = _find_images(job)
        classes = _check_folders(job, counts)
    if classes:
        _check_heads(job, classes)
    _check_images(job, paths, counts)


def _reads_folders(dataset: BaseDataset) -> bool:
    """Returns whether a dataset finds labeled images as CustomDataset does."""
    return (
        isinstance(dataset, CustomDataset)
        and type(dataset).load_data_list is CustomDataset.load_data_list
        and type(dataset)._find_samples is CustomDataset._find_samples
        and dataset.with_label
        and is_local(dataset.img_prefix, None)
    )


def _is_class(folder: str) -> bool:
    """Returns whether a folder is a class, and not a leftover of other programs."""
    return not folder.startswith('.') and folder != '__MACOSX'


def _read_list(job: Job) -> tuple[list[str], dict[int, int]]:
    """Reads 'path label' lines; returns the paths and the number of images by label."""
    dataset, number = job.dataset, len(job.dataset.CLASSES or ())
    paths, counts, wrong = [], Counter(dict.fromkeys(range(number), 0)), []
    lines = list_from_file(dataset.ann_file)
    for i, line in enumerate(lines, 1):
        path, _, label = line.strip().rpartition(' ')
        if path and label.isdecimal() and not 0 < number <= int(label):
            paths.append(os.path.join(dataset.img_prefix, path))
            counts[int(label)] += 1
        else:
            wrong.append(f'line {i} {line!r}')
    if wrong or not lines:
        labels = f'from 0 to {number - 1}' if number else 'from 0'
        job.refuse(
            f'{len(wrong):,} of {len(lines):,} lines of {dataset.ann_file} are not "path label" '
            f'with a label {labels}: {preview(wrong, 3) or "it is empty"}; correct them'
        )
    return paths, counts


def _find_images(job: Job) -> tuple[list[str], dict[str, int]]:
    """Returns the images in folders and the number of images by folder."""
    dataset, root = job.dataset, job.dataset.img_prefix
    folders, files = find_folders(root)[0], []
    # MMPretrain's get_samples is several times slower.
    for folder in folders:
        paths = files_below(os.path.join(root, folder))
        files += [(path, folder) for path in paths if not os.path.basename(path).startswith('.')]
    read = [(path, folder) for path, folder in files if dataset.is_valid_file(path)]
    left = [os.path.splitext(path)[1] for path, _ in files if not dataset.is_valid_file(path)]
    counts = dict.fromkeys(folders, 0) | Counter(folder for _, folder in read)
    skipped = (
        f'end with {preview(sorted({end or "no extension" for end in left})) or "-"}, and '
        f'extensions=({preview(sorted(dataset.extensions), 9)}) says which are read'
    )
    if not any(map(_is_class, folders)):
        job.refuse(f'there is no folder in {root}, where each class needs one with its images')
    elif not read:
        job.refuse(f'there is no image in the folders of {root}; files {skipped}')
    elif left:
        job.note(f'{len(left):,} files in {root} are left out, as they {skipped}')
    if read and (empty := [folder for folder in filter(_is_class, folders) if not counts[folder]]):
        job.note(f'folders without images in {root}: {preview(empty)}')
    return [path for path, _ in read], counts


def _check_folders(job: Job, counts: dict[str, int]) -> list[str]:
    """Compares folders with the classes and with the training folders; returns the class names."""
    root, classes = job.dataset.img_prefix, job.dataset.CLASSES
    if strays := [folder for folder in counts if not _is_class(folder)]:
        job.refuse(
            f'{preview(strays)} in {root} would be a class, as each folder there is; remove it'
        )
    folders = list(filter(_is_class, counts))
    trained = _folders_of_training(job.cfg)
    if trained and folders != trained:
        job.refuse(
            f'the folders of {root} differ from those of training, which number the classes: '
            f'{_difference(folders, trained, "training")}; give both the same (empty ones for '
            'classes without images)'
        )
    elif classes and len(folders) != len(classes):
        own = classes == type(job.dataset).METAINFO.get('classes')
        whose = f" (which are {type_name(job.settings)}'s own)" if own else ''
        job.refuse(
            f'{len(folders)} folders in {root}, but {len(classes)} classes in metainfo{whose}: '
            f'{_difference(folders, classes, "metainfo.classes")}; set metainfo=dict(classes=...) '
            f'to the sorted names of the folders, ({preview(folders, 8)})'
        )
    elif classes:
        _check_order(job, folders, classes)
    return trained or folders


def _difference(folders: list[str], names: list[str], source: str) -> str:
    """Lists the names that occur on one side alone."""
    lacking = preview(name for name in names if name not in folders)
    extra = preview(folder for folder in folders if folder not in names)
    return f'without a folder {lacking or "none"}, not in {source} {extra or "none"}'


def _folders_of_training(cfg: Config) -> list[str]:
    for dataset in datasets_of_training(cfg):
        if _reads_folders(dataset) and not dataset.ann_file and os.path.isdir(dataset.img_prefix):
            return list(filter(_is_class, find_folders(dataset.img_prefix)[0]))
    return []


def _check_order(job: Job, folders: list[str], classes: list[str]) -> None:
    """Compares the order of class names and folders, where their names match."""

    def plain(name: str) -> str:
        return name.strip().replace('_', ' ').lower()

    known = set(map(plain, folders)) & set(map(plain, classes))
    pairs = [
        (folder, name) for folder, name in zip(folders, classes) if plain(folder) != plain(name)
    ]
    moved = [f'{name} is {folder}' for folder, name in pairs if plain(name) in known]
    if moved:
        job.refuse(
            f'metainfo.classes=({preview(classes, 8)}) are in another order than the sorted '
            f'folders of {job.dataset.img_prefix}, which labels follow ({preview(folders, 8)}), so '
            f'that {preview(moved)}; name the classes in the order of the folders'
        )
    # ImageNet's folders have codes instead of names, which cannot be compared.
    elif known and pairs:
        other = preview(f'{folder} is {name}' for folder, name in pairs)
        job.note(f'folders with another name than their class: {other}')


def _check_heads(job: Job, classes: list[str]) -> None:
    """Compares each num_classes of the config with the classes and with the others."""
    cfg, model = job.cfg, job.cfg.get('model') or {}
    head = model.get('head') or {}
    if (
        'num_classes' not in head
        or 'MultiLabel' in type_name(head)
        or 'MultiTask' in type_name(head)
    ):
        return
    setting, number = 'model.head.num_classes', head.num_classes
    check_number(job, setting, number, classes)
    augments = (model.get('train_cfg') or {}).get('augments')
    place, owner = ('model.', model) if 'data_preprocessor' in model else ('', cfg)
    preprocessor = owner.get('data_preprocessor') or {}
    parts = [*dicts_of(head.get('loss'), 'model.head.loss')]
    parts += dicts_of(augments, 'model.train_cfg.augments')
    # Mixup, CutMix and the like turn labels into num_classes scores.
    if augments or preprocessor.get('to_onehot') or preprocessor.get('batch_augments'):
        parts += dicts_of(preprocessor, f'{place}data_preprocessor')
    for place, part in parts:
        if (other := part.get('num_classes', number)) != number:
            job.report.errors.append(
                f'{place}.num_classes={other}, but {setting}={number}; set both to the number of '
                f'classes, {len(classes)}.'
            )
    for place, metric in dicts_of(cfg.get(f'{job.split}_evaluator'), f'{job.split}_evaluator'):
        topk = metric.get('topk', 1) if type_name(metric) == 'Accuracy' else 1
        if max(topk if isinstance(topk, (list, tuple)) else [topk]) > number:
            job.report.errors.append(
                f'{place}.topk={topk} asks for more than the {number} classes of {setting}; set '
                'topk=(1,).'
            )


def _check_images(job: Job, paths: list[str], counts: dict) -> None:
    """Reads images as the pipeline does, and adds the table of classes."""
    dataset = job.dataset
    source = f'listed in {dataset.ann_file}' if dataset.ann_file else f'in {dataset.img_prefix}'
    missing = refuse_missing(job, paths, f'images {source}', lambda path: 'replace or remove them')
    sizes = read_images(job, [path for path in paths if path not in missing])
    found = dict(folder=dataset.img_prefix, images=len(paths), classes=len(counts))
    refuse_narrow(job, sizes)
    most, least = (pick(counts.values(), default=0) for pick in (max, min))
    of_a_class = f'{least:,} to {most:,}' if least < most else f'{least:,}'
    found |= {'images of a class': of_a_class, 'images read': len(sizes)}
    job.report.count('Data', job.split, found | size_rows(sizes.values()))
    if len(counts) <= 100:
        names = [*(dataset.CLASSES or ()), *list(counts)[len(dataset.CLASSES or ()) :]]
        named = {
            str(key) if name == key else f'{key}: {name}': counts[key]
            for key, name in zip(counts, names)
        }
        job.report.count('Images', job.split, named)
