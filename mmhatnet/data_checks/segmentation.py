"""Checks of the images and masks of a segmentor."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import mmcv
import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, MODELS, TRANSFORMS

from mmhatnet.config_walk import class_of, dicts_of, type_name
from mmhatnet.data_checks import report
from mmhatnet.data_checks.images import (
    check_number,
    datasets_of_training,
    files_below,
    is_local,
    paths_exist,
    read_images,
    read_sample,
    refuse_circle,
    refuse_missing,
    refuse_narrow,
    size_rows,
)
from mmhatnet.data_checks.report import preview

ENDINGS = ('.bmp', '.gif', '.jfif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
NO_CLASS = ('background', 'bg', 'unlabeled', 'unlabeled', 'void', 'ignore')
CROSS_ENTROPY = ('CrossEntropyLoss', 'OhemCrossEntropy')


class Mask(NamedTuple):
    """The shape of a mask, and the number of pixels by value."""

    shape: tuple[int, ...]
    values: Counter


@dataclass
class Job(report.Job):
    """One dataset of a segmentor, and the meaning of its masks."""

    def __post_init__(self) -> None:
        steps = list(self.settings.get('pipeline') or ())
        self.load_mask = next(
            (step for step in steps if type_name(step) == 'LoadAnnotations'), None
        )
        self.classes = self.dataset.metainfo.get('classes') or ()
        self.reduce = self.dataset.reduce_zero_label
        judges = [part for _, part in _heads_of(self.cfg)]
        if self.split != 'train':
            metrics = dicts_of(self.cfg.get(f'{self.split}_evaluator'))
            judges = [metric for _, metric in metrics if type_name(metric) == 'IoUMetric']
        self.ignored = {part.get('ignore_index', 255) for part in judges} or {255}
        # The effect of a user's own steps or metrics is unknown.
        self.sure = bool(judges) and all(_is_of(TRANSFORMS, s, 'mmcv.', 'mmseg.') for s in steps)

    def label(self, value: int) -> int:
        """Returns the label of a mask's value, as LoadAnnotations computes it."""
        value %= 256
        if self.reduce:
            value = 255 if value in (0, 255) else value - 1
        return (self.dataset.label_map or {}).get(value, value)

    def labels(self, values: Counter) -> set[int]:
        """Returns the labels that are not ignored."""
        return set(map(self.label, values)) - self.ignored


def check_segmentation(job: report.Job) -> None:
    """Checks one dataset of a segmentor."""
    if not isinstance(job.dataset, BaseSegDataset) or not is_local('', job.dataset.backend_args):
        job.note(f'{type_name(job.settings)} is not checked, because its files are unknown')
        return
    job = Job(**vars(job))
    # Without masks, heads may predict something else, such as depth.
    if not job.load_mask or _check_heads(job):
        _check_against_training(job)
        if pairs := _find_pairs(job):
            _check_files(job, pairs)


def why_not_built(where: str, settings: ConfigDict) -> str | None:
    """Returns why MMSegmentation cannot build a dataset whose type has its own classes."""
    own = getattr(class_of(DATASETS, settings), 'METAINFO', {}).get('classes')
    names = (settings.get('metainfo') or {}).get('classes') or ()
    if not own or not (other := [name for name in names if name not in own]):
        return None
    return (
        f'{where}: metainfo.classes names {preview(other)}, which {type_name(settings)} does not '
        f"know, as it has {len(own)} classes of its own; set type='BaseSegDataset' with "
        'img_suffix, seg_map_suffix and reduce_zero_label as your files need them.'
    )


def _is_of(registry: Registry, part: dict, *modules: str) -> bool:
    made = class_of(registry, part)
    return made is not None and made.__module__.startswith(modules)


def _heads_of(cfg: Config) -> Iterator[tuple[str, dict]]:
    """Yields the segmentor's heads with their paths in the config."""
    for place, part in dicts_of(cfg.get('model'), 'model'):
        if re.fullmatch(r'model\.(decode|auxiliary)_head(\[\d+\])?', place):
            yield place, part


def _check_heads(job: Job) -> bool:
    """Compares heads with classes; returns whether there are at least two classes."""
    n = len(job.classes)
    for place, head in _heads_of(job.cfg):
        number, sure = head.get('num_classes'), _is_of(MODELS, head, 'mmseg.')
        # STDCHead predicts edges.
        if not (number and n) or type_name(head) == 'STDCHead':
            continue
        one_channel = (head.get('out_channels') or number) == 1
        losses = dict(dicts_of(head, place))
        softmax = 'loss_decode' not in head or any(
            type_name(loss) in CROSS_ENTROPY and not loss.get('use_sigmoid')
            for loss in losses.values()
        )
        if n == 1 or (one_channel and softmax):
            texts = job.report.errors if sure else job.report.notes
            texts.append(
                f'{place}.num_classes={number}: with one class there is nothing to learn; set '
                f"metainfo=dict(classes=('background', {job.classes[-1]!r})), num_classes=2 and "
                'reduce_zero_label=False, with 0 for the background in masks, or beside these '
                "out_channels=1, threshold=0.5 and loss_decode=dict(type='CrossEntropyLoss', "
                'use_sigmoid=True) in heads that have loss_decode.'
            )
            return not sure
        if one_channel and n == 2:
            continue
        check_number(job, f'{place}.num_classes', number, job.classes, sure)
        for loss, part in losses.items():
            weights = part.get('class_weight')
            # Queries have one more class, for no object.
            wanted = number + loss.endswith('loss_cls')
            if isinstance(weights, (list, tuple)) and len(weights) != wanted:
                job.report.errors.append(
                    f'{loss}.class_weight has {len(weights)} numbers, but num_classes={number} '
                    f'needs {wanted}.'
                )
    return True


def _check_against_training(job: Job) -> None:
    """Compares the settings of labels with those of training."""
    trained = datasets_of_training(job.cfg) if job.split != 'train' else []
    for name in ('classes', 'reduce_zero_label'):
        found = [dataset.metainfo.get(name) for dataset in (job.dataset, *trained)]
        # Unset values are not compared; lists and tuples are equal.
        own, *others = (list(v) if isinstance(v, tuple) else v for v in found)
        if others and None not in (own, *others) and own not in others:
            own, other = (preview(v, 8) if name == 'classes' else v for v in (own, others[0]))
            job.refuse(
                f'{name}: {own}, but {other} in train_dataloader, so that labels mean something '
                'else than in training; give both the same'
            )


def _find_pairs(job: Job) -> dict[str, str | None]:
    """Pairs images with masks, and reports what is missing or left out."""
    dataset = job.dataset
    listed = dataset.ann_file if not os.path.isdir(dataset.ann_file) else ''
    keys = ('img_path', 'seg_map_path') if job.load_mask else ('img_path',)
    folders = {f'data_prefix.{key}': dataset.data_prefix.get(key) for key in keys}
    if not paths_exist(job, folders | dict(ann_file=listed)):
        return {}
    if not listed and refuse_circle(job, dataset.data_prefix['img_path']):
        return {}
    # An empty list cannot be serialized.
    dataset.serialize_data = False
    dataset.full_init()
    infos = dataset.data_list
    pairs = {i['img_path']: i.get('seg_map_path') if job.load_mask else None for i in infos}
    if listed and not pairs:
        job.refuse(f'{listed} lists no image')
    elif not listed and dataset._indices is None:
        _say_left_out(job, {*pairs, *pairs.values()}, *folders.values())
    missing = refuse_missing(job, list(pairs), 'images', partial(_hint_for_file, dataset, False))
    masks = [mask for image, mask in pairs.items() if mask and image not in missing]
    missing |= refuse_missing(job, masks, 'masks', partial(_hint_for_file, dataset, True))
    return {image: mask for image, mask in pairs.items() if not missing & {image, mask}}


def _images_in(folder: str) -> list[str]:
    """Lists all files below a folder whose names end like images."""
    return [
        path
        for path in files_below(folder)
        if path.lower().endswith(ENDINGS) and not os.path.basename(path).startswith('.')
    ]


def _say_left_out(job: Job, used: set[str], folder: str, masks: str | None = None) -> None:
    """Reports images and masks that are not used."""
    suffixes = f'img_suffix={job.dataset.img_suffix!r}'
    used = {os.path.normpath(path) for path in used if path}
    left = {folder: _images_in(folder)}
    if not used:
        ends = Counter(os.path.splitext(path)[1] for path in left[folder])
        hint = f'set img_suffix={max(ends, key=ends.get)!r}' if ends else 'correct data_prefix'
        job.refuse(
            f'none of the {ends.total():,} images in {folder} ends with {suffixes}, but with '
            f'{preview(ends) or "-"}; {hint}'
        )
        return
    kept = {os.path.normpath(path) for path in left[folder]} & used
    lost = _without_companions(job.dataset.img_suffix, kept, left[folder], used)
    if len(lost) > len(kept):
        job.refuse(
            f'{suffixes} leaves out {len(lost):,} images in {folder} ({preview(lost, 3)}), and '
            f'keeps {len(kept):,}; convert them to one format, or move those that are not meant to '
            'another folder'
        )
        return
    if masks and not os.path.samefile(folder, masks):
        # Cityscapes has other files beside the masks.
        ending = job.dataset.seg_map_suffix
        left[masks] = [path for path in _images_in(masks) if path.endswith(ending)]
        suffixes += f', seg_map_suffix={ending!r}'
    for root, paths in left.items():
        if names := [os.path.basename(p) for p in paths if os.path.normpath(p) not in used]:
            job.note(f'{len(names):,} files in {root} are left out by {suffixes}: {preview(names)}')


def _without_companions(suffix: str, kept: set[str], paths: list[str], used: set[str]) -> list[str]:
    """Returns the images that are neither used nor named after one that is, as masks are."""
    stems = {path.removesuffix(suffix) for path in kept}
    lost = []
    for path in map(os.path.normpath, paths):
        ends = [i for i in range(len(path)) if not path[i].isalnum()]
        if path not in used and not any(path[:end] in stems for end in ends):
            lost.append(path)
    return lost


def _hint_for_file(dataset: BaseSegDataset, is_mask: bool, path: str) -> str:
    """Suggests how to find a missing file, such as a mask with another suffix."""
    folder, name = os.path.split(path)
    stem = name.removesuffix(dataset.seg_map_suffix)
    for other in sorted(os.listdir(folder)) if is_mask and os.path.isdir(folder) else ():
        end = other.removeprefix(stem)
        if other != end and not end[:1].isalnum() and not other.endswith(dataset.img_suffix):
            return f'{other} is there: set seg_map_suffix={end!r}'
    return (
        f'names follow from {dataset.ann_file or "images"}, img_suffix={dataset.img_suffix!r} '
        f'and seg_map_suffix={dataset.seg_map_suffix!r}; add the files, or remove these names'
    )


def _check_files(job: Job, pairs: dict[str, str | None]) -> None:
    """Reads images and masks as the pipeline does, and checks their content."""
    sizes = read_images(job, list(pairs))
    refuse_narrow(job, sizes)
    found = dict(folder=job.dataset.data_prefix['img_path'], images=len(pairs))
    found['images read'] = len(sizes)
    job.report.count('Data', job.split, found | size_rows(sizes.values()))
    if not job.load_mask:
        if job.split != 'test':
            job.note('no mask is read, as its pipeline has no LoadAnnotations')
        return
    if (other := job.load_mask.get('reduce_zero_label')) not in (None, job.reduce):
        job.refuse(
            f'reduce_zero_label={job.reduce} in the dataset, but {other} in LoadAnnotations of its '
            'pipeline; give both the same, True where 0 in masks is no class, else False'
        )
        return
    paths = [mask for mask in pairs.values() if mask]
    masks = read_sample(job, paths, 'masks', partial(_read_mask, job.load_mask))
    if deep := [path for path, mask in masks.items() if len(mask.shape) != 2]:
        job.refuse(
            f'{len(deep):,} of {len(masks):,} masks read have the shape {masks[deep[0]].shape}, '
            f'{preview(deep, 3)}; colors are no labels, save the number of the class of each '
            'pixel, or one channel where the channels are equal, as gray or palette PNG',
            job.sure,
        )
    elif masks:
        _check_sizes(job, pairs, sizes, masks)
        _check_values(job, masks, paths)
        _show(job, masks)


def _read_mask(load: ConfigDict, path: str) -> Mask:
    """Reads a mask as LoadAnnotations does, without changing its values."""
    with open(path, 'rb') as file:
        content = file.read()
    backend = load.get('imdecode_backend', 'pillow')
    pixels = mmcv.imfrombytes(content, flag='unchanged', backend=backend).squeeze()
    values, counts = np.unique(pixels, return_counts=True)
    return Mask(pixels.shape, Counter(dict(zip(values.astype(int).tolist(), counts.tolist()))))


def _check_sizes(job: Job, pairs: dict, sizes: dict, masks: dict[str, Mask]) -> None:
    read = [(p, pairs[p], *sizes[p], *masks[pairs[p]].shape) for p in sizes if pairs[p] in masks]
    other = [look for look in read if look[2:4] != look[4:]]
    if other:
        image, mask, height, width, rows, columns = other[0]
        # Resize fits a smaller mask to the image, but only in training.
        resizes = any('Resize' in type_name(step) for step in job.settings.pipeline)
        scaled = all(h * columns == w * rows for _, _, h, w, rows, columns in other)
        job.refuse(
            f'{len(other):,} of {len(read):,} masks read have another size than their image, '
            f'{mask} {columns}x{rows}, {image} {width}x{height}; make both the same, without '
            'interpolating the mask',
            job.sure and not (job.split == 'train' and resizes and scaled),
        )


def _check_values(job: Job, masks: dict[str, Mask], paths: list[str]) -> None:
    """Compares the values in masks with the classes."""
    n, first = len(job.classes), int(job.reduce)
    values = sorted(set().union(*(mask.values for mask in masks.values())))
    found = f'values found: {preview(values, 12)}'
    known = job.ignored | set(range(n))
    # LoadAnnotations converts values to bytes.
    labels = set(map(job.label, range(256))) - job.ignored
    unread = [name for label, name in enumerate(job.classes) if label > 253 and label not in labels]
    bytes_hint = (
        f"MMSegmentation's LoadAnnotations reads masks as 8 bits, with room for {len(labels)} "
        'classes; leave out or merge classes, or load the masks with a transform of your own'
    )
    if lost := [v for v in values if 255 < v < first + n]:
        job.refuse(
            f'the value {preview(lost, 8)} in masks ({_example(masks, lost[0])}) is one of the {n} '
            f'classes, but would be read as {lost[0] % 256}, because {bytes_hint}',
            job.sure,
        )
        return
    if unread:
        job.note(f'no pixel can have the classes {preview(unread)}, because {bytes_hint}')
    counted = set(range(-1, 256))
    beyond = [v for v in values if job.label(v) not in (known if v in counted else job.ignored)]
    if n and not beyond:
        _check_used(job, masks, paths, found)
    elif n:
        hint = 'correct the masks (lossy or interpolated ones have many), or name all classes'
        if beyond == [n] and not first:
            hint = 'set reduce_zero_label=True if 0 is no class, or name the class that is missing'
        job.refuse(
            f'the value {preview(beyond, 8)} in masks ({_example(masks, beyond[0])}) is none of '
            f'the {n} classes, which are {first} to {first + n - 1} as reduce_zero_label='
            f'{job.reduce}, nor ignored as {preview(job.ignored)} is, {found}; {hint}',
            job.sure,
        )


def _example(masks: dict[str, Mask], value: int) -> str:
    return next(path for path, mask in masks.items() if value in mask.values)


def _check_used(job: Job, masks: dict[str, Mask], paths: list[str], found: str) -> None:
    """Checks which classes have pixels."""
    classes, first, last = job.classes, int(job.reduce), len(job.classes) - 1
    used = set().union(*(job.labels(mask.values) for mask in masks.values()))
    zero_dropped = job.reduce and any(0 in mask.values for mask in masks.values())
    # Datasets of MMSegmentation itself have the masks that it expects.
    own = not (type(job.dataset).METAINFO and _is_of(DATASETS, job.settings, 'mmseg.'))
    named = classes[0].strip('_ ').lower() in NO_CLASS
    shifted = zero_dropped and own and named
    if (len(used) < 2 or (shifted and last not in used)) and len(masks) < len(paths):
        # A sample may lack rare classes: read all masks before a refusal.
        every = read_sample(job, paths, 'masks', partial(_read_mask, job.load_mask), every=True)
        _check_used(job, every, list(every), found)
    elif shifted and last not in used:
        job.refuse(
            f'reduce_zero_label=True drops 0, which seems to be the first class, {classes[0]!r} '
            f'({found}), so that each class gets the name of the one before; set '
            'reduce_zero_label=False in the dataset and in LoadAnnotations',
            job.sure,
        )
    elif len(used) < 2:
        only = f'only {classes[min(used)]!r} has pixels' if used else 'no class has pixels'
        drops = ' and 0 too, as reduce_zero_label=True' if job.reduce else ''
        hint = ', or set reduce_zero_label=False if 0 is one' if zero_dropped else ''
        job.refuse(
            f'{only} ({found}; {preview(job.ignored)} is ignored{drops}), so that there is nothing '
            f'to learn; give the classes the values {first} to {first + last}{hint}',
            job.sure and job.split == 'train',
        )
    elif len(masks) == len(paths) and (unused := set(range(len(classes))) - used):
        job.note(f'no mask has pixels of {preview(classes[i] for i in sorted(unused))}')


def _show(job: Job, masks: dict[str, Mask]) -> None:
    """Adds the share of pixels by class."""
    names = dict.fromkeys(job.ignored, 'ignored') | dict(enumerate(job.classes))
    pixels = Counter()
    for mask in masks.values():
        for value, count in mask.values.items():
            pixels[names.get(job.label(value), f'value {value}')] += count
    total = pixels.total()
    shares = {name: f'{100 * count / total:.1f} %' for name, count in pixels.most_common()}
    job.report.count('Pixels of the masks read', job.split, shares)
