"""Checks of the folders and pictures of a classifier."""

import os
from collections import Counter
from collections.abc import Iterator

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmpretrain.datasets import CustomDataset

from mmhatnet.preflight.pictures import (
    datasets_of_training,
    kind,
    look_at,
    missing_of,
    picture_loader,
    size_rows,
    some,
    spread,
    text_instead_of_names,
    trouble_of,
)
from mmhatnet.preflight.report import Report


def check_classification(
    cfg: Config,
    split: str,
    settings: ConfigDict,
    dataset: BaseDataset,
    report: Report,
    every: bool,
) -> None:
    """Looks at one dataset of a classifier.

    Args:
        cfg (Config): The job's config.
        split (str): 'train', 'val' or 'test'.
        settings (ConfigDict): The dataset's own part of the config.
        dataset (BaseDataset): The dataset, built lazily and without its pipeline.
        report (Report): Where to say what was found.
        every (bool): Whether to read all pictures.
    """
    where = f'{split}_dataloader.dataset'
    if not reads_folders(dataset):
        report.notes.append(f'{where}: {kind(settings)} is not checked, its files are not known.')
        return
    for name, path, there in (
        ('data_prefix', dataset.img_prefix, os.path.isdir),
        ('ann_file', dataset.ann_file, os.path.isfile),
    ):
        if path and not there(path):
            report.errors.append(f'{where}: {path} is not there; {name} and data_root name it.')
            return
    if isinstance(dataset.CLASSES, str):
        report.errors.append(text_instead_of_names(where, dataset.CLASSES))
        return
    if dataset.ann_file:
        counts, paths = read_list(where, dataset, report)
        classes = dataset.CLASSES
    else:
        counts, paths, left = walk_folders(dataset)
        classes = check_folders(cfg, split, where, dataset, counts, left, report)
    if classes:
        check_heads(cfg, split, classes, report)
    check_pictures(where, split, settings, dataset, counts, paths, report, every)


def reads_folders(dataset: BaseDataset) -> bool:
    """Whether a dataset finds labelled pictures as CustomDataset does."""
    return (
        isinstance(dataset, CustomDataset)
        and type(dataset).load_data_list is CustomDataset.load_data_list
        and type(dataset)._find_samples is CustomDataset._find_samples
        and dataset.with_label
        and '://' not in dataset.img_prefix
    )


def folders_of(dataset: CustomDataset) -> list[str]:
    """The folders that become classes, in the order of their labels."""
    return sorted(entry.name for entry in os.scandir(dataset.img_prefix) if entry.is_dir())


def stray(folder: str) -> bool:
    """Whether a folder is what programs leave behind, not a class."""
    return folder.startswith('.') or folder == '__MACOSX'


def walk_folders(dataset: CustomDataset) -> tuple[dict[str, int], list[str], Counter]:
    """Counts pictures by folder, and the files left out by the ends of their names."""
    counts, paths, left = {}, [], Counter()
    for folder in folders_of(dataset):
        before = len(paths)
        for at, _, names in os.walk(os.path.join(dataset.img_prefix, folder), followlinks=True):
            for name in sorted(names):
                if name.startswith('.'):
                    continue
                if name.lower().endswith(dataset.extensions):
                    paths.append(os.path.join(at, name))
                else:
                    left[os.path.splitext(name)[1].lower()] += 1
        counts[folder] = len(paths) - before
    return counts, paths, left


def read_list(
    where: str, dataset: CustomDataset, report: Report
) -> tuple[dict[int, int], list[str]]:
    """Reads 'path label' lines, and says which are wrong."""
    counts, paths, wrong = Counter(), [], []
    with open(dataset.ann_file, encoding='utf-8') as file:
        for number, line in enumerate(file.read().splitlines(), 1):
            path, _, label = line.strip().rpartition(' ')
            if path and label.isdecimal():
                paths.append(os.path.join(dataset.img_prefix, path))
                counts[int(label)] += 1
            else:
                wrong.append(f'line {number} {line!r}')
    if wrong:
        report.errors.append(
            f'{where}: {len(wrong):,} lines of {dataset.ann_file} are not "path label" with the '
            f'number of a class from 0: {some(wrong, 3)}; correct them.'
        )
    if not paths and not wrong:
        report.errors.append(f'{where}: {dataset.ann_file} lists no picture.')
    beyond = sorted(label for label in counts if label >= len(dataset.CLASSES or counts))
    if dataset.CLASSES and beyond:
        report.errors.append(
            f'{where}: labels {some(beyond)} of {dataset.ann_file} are none of the '
            f'{len(dataset.CLASSES)} classes, which are 0 to {len(dataset.CLASSES) - 1}; correct '
            'them, or name all classes in metainfo.classes.'
        )
    return dict(sorted(counts.items())), paths


def check_folders(
    cfg: Config,
    split: str,
    where: str,
    dataset: CustomDataset,
    counts: dict[str, int],
    left: Counter,
    report: Report,
) -> list[str]:
    """Compares folders with classes and those of training; returns what heads should know."""
    folders, root = list(counts), dataset.img_prefix
    strays = [folder for folder in folders if stray(folder)]
    folders = [folder for folder in folders if not stray(folder)]
    if strays:
        report.errors.append(
            f'{where}: {some(strays)} in {root} would be a class, as each folder there is one; '
            'remove it.'
        )
    classes = dataset.CLASSES
    trained = folders_of_training(cfg) if split != 'train' else []
    if not folders:
        report.errors.append(
            f'{where}: there is no folder in {root}, where each class needs one with its pictures.'
        )
    elif other := next((f for f in trained if f != folders), None):
        report.errors.append(
            f'{where}: the folders of {root} differ from those of training: '
            f'{difference(folders, other, "training")}; labels follow the sorted names of folders, '
            'so both need the same folders (an empty one for a class without pictures).'
        )
    elif classes and len(folders) != len(classes):
        own = dataset.METAINFO.get('classes')
        whose = f" (which are {type(dataset).__name__}'s own)" if classes == own else ''
        report.errors.append(
            f'{where}: {len(folders)} folders in {root}, but {len(classes)} classes in metainfo'
            f'{whose}: {difference(folders, list(classes), "metainfo.classes")}; set '
            f'metainfo=dict(classes=...) to the sorted names of the folders, ({some(folders, 8)}).'
        )
    elif classes:
        check_order(where, root, folders, list(classes), report)
    empty = [folder for folder in folders if not counts[folder]]
    if folders and len(empty) == len(folders):
        report.errors.append(
            f'{where}: there is no picture in the {len(folders)} folders of {root}, files end with '
            f'{some(sorted(left)) or "nothing"} and extensions are '
            f'{some(sorted(dataset.extensions), 9)}.'
        )
    elif empty:
        report.notes.append(f'{where}: folders without pictures in {root}: {some(empty)}.')
    if left:
        report.notes.append(
            f'{where}: {left.total():,} files in {root} are left out, as they end with '
            f'{some([e or "no extension" for e in sorted(left)])}; extensions=(...) says which are '
            'read.'
        )
    return trained[0] if trained else folders


def difference(folders: list[str], names: list[str], source: str) -> str:
    """Says which names are on one side alone."""
    lacking = [name for name in names if name not in folders]
    extra = [folder for folder in folders if folder not in names]
    if not set(folders) & set(names):
        return f'folders {some(folders)}; {source} {some(names)}'
    parts = (f'no folder for {some(lacking)}' if lacking else '',)
    parts += (f'{some(extra)} not in {source}' if extra else '',)
    return ', '.join(part for part in parts if part)


def folders_of_training(cfg: Config) -> list[list[str]]:
    """The folders of each dataset of the training split, as far as they are known."""
    datasets = [d for d in datasets_of_training(cfg) if reads_folders(d) and not d.ann_file]
    datasets = [d for d in datasets if os.path.isdir(d.img_prefix)]
    return [[f for f in folders_of(dataset) if not stray(f)] for dataset in datasets]


def check_order(
    where: str, root: str, folders: list[str], classes: list[str], report: Report
) -> None:
    """Compares names with folders, where a name can be recognised in a folder's."""

    def plain(name: str) -> str:
        return name.strip().replace('_', ' ').lower()

    places = {plain(folder): i for i, folder in enumerate(folders)}
    known = {i: places[plain(name)] for i, name in enumerate(classes) if plain(name) in places}
    moved = [f'{classes[i]} is {folders[i]}' for i, place in known.items() if i != place]
    if moved:
        report.errors.append(
            f'{where}: metainfo.classes=({some(classes, 8)}) are in another order than the sorted '
            f'folders of {root}, which labels follow ({some(folders, 8)}), so that {some(moved)}; '
            'name the classes in the order of the folders.'
        )
    elif known and len(known) < len(classes):
        other = [f'{folders[i]} is {c}' for i, c in enumerate(classes) if i not in known]
        report.notes.append(f'{where}: folders with another name than their class: {some(other)}.')


def numbers_of(part: object, name: str) -> Iterator[tuple[str, int]]:
    """Yields each num_classes below a part of the config, with its name."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == 'num_classes' and isinstance(value, int):
                yield f'{name}.{key}', value
            yield from numbers_of(value, f'{name}.{key}')
    elif isinstance(part, (list, tuple)):
        for i, value in enumerate(part):
            yield from numbers_of(value, f'{name}[{i}]')


def check_heads(cfg: Config, split: str, classes: list[str], report: Report) -> None:
    """Compares each num_classes of the config with the classes, and with one another."""
    model = cfg.get('model') or {}
    head = model.get('head') or {}
    if 'num_classes' not in head or 'MultiLabel' in kind(head) or 'MultiTask' in kind(head):
        return
    given, n = head.num_classes, len(classes)
    says = f'model.head.num_classes={given}'
    if given < n:
        report.errors.append(f'{says}, but there are {n} classes ({some(classes)}); set it to {n}.')
    elif given > n:
        report.notes.append(
            f'{says}, but there are {n} classes ({some(classes)}): the others learn nothing, '
            'which is allowed.',
        )
    augments = (model.get('train_cfg') or {}).get('augments')
    name = 'model.data_preprocessor' if 'data_preprocessor' in model else 'data_preprocessor'
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    parts = [('model.head.loss', head.get('loss')), ('model.train_cfg.augments', augments)]
    # Labels become as many scores as it says, for Mixup, CutMix and the like.
    if augments or preprocessor.get('to_onehot') or preprocessor.get('batch_augments'):
        parts.append((name, preprocessor))
    for name, part in parts:
        for field, number in numbers_of(part, name):
            if number != given:
                report.errors.append(
                    f'{field}={number}, but {says}; set both to the number of classes, {n}.',
                )
    metrics = cfg.get(f'{split}_evaluator') or []
    for metric in [metrics] if isinstance(metrics, dict) else metrics:
        topk = metric.get('topk', 1) if kind(metric) == 'Accuracy' else 1
        most = max(topk) if isinstance(topk, (list, tuple)) else topk
        if most > given:
            report.errors.append(
                f'{split}_evaluator: topk={topk} asks for the best {most} of {given} classes '
                f'({says}); set topk=(1,).'
            )


def check_pictures(
    where: str,
    split: str,
    settings: ConfigDict,
    dataset: CustomDataset,
    counts: dict,
    paths: list[str],
    report: Report,
    every: bool,
) -> None:
    """Reads pictures as the pipeline does, and adds the table of classes."""
    loader = picture_loader(settings.get('pipeline'))
    missing = missing_of(paths)
    if missing:
        source = f' of {dataset.ann_file}, whose paths start in' if dataset.ann_file else ' in'
        report.errors.append(
            f'{where}: {len(missing):,} of {len(paths):,} pictures{source} {dataset.img_prefix} '
            f'are missing or empty: {some(missing, 3)}; replace them, or take them away.'
        )
    if not loader:
        report.notes.append(f'{where}: no LoadImageFromFile in its pipeline, no picture is read.')

    def look(path: str) -> tuple[int, int] | str | None:
        try:
            return (loader(dict(img_path=path)) or {}).get('img_shape')
        except Exception:
            return f'{path}: {trouble_of(path)}'

    present = [path for path in paths if path not in set(missing)] if missing else paths
    looks = list(look_at(spread(present, every), look, every, report)) if loader else []
    troubles = [found for found in looks if isinstance(found, str)]
    if troubles:
        report.errors.append(
            f'{where}: {len(troubles):,} of {len(looks):,} pictures read cannot be: '
            f'{some(troubles, 3)}; replace them.'
        )
    sizes = [found for found in looks if isinstance(found, tuple)]
    found = {'folder': dataset.img_prefix, 'pictures': len(paths), 'classes': len(counts)}
    found['pictures of a class'] = (
        f'{min(counts.values(), default=0):,} to {max(counts.values(), default=0):,}'
    )
    report.count('Data', split, found | size_rows(sizes))
    if len(counts) <= 100:
        names = [*(dataset.CLASSES or ())] + ['?'] * len(counts)
        named = {f'{key}: {name}': counts[key] for key, name in zip(counts, names, strict=False)}
        report.count('Pictures', split, named if dataset.CLASSES else counts)
