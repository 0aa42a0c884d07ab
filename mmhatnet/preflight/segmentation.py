"""What can be wrong with the pictures and masks of a segmentor."""

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

from mmhatnet.preflight import report
from mmhatnet.preflight.pictures import (
    are_there,
    check_number,
    class_of,
    datasets_of_training,
    is_local,
    kind,
    parts_of,
    read_each,
    read_pictures,
    read_sample,
    say_missing,
    size_rows,
    text_instead_of_names,
)
from mmhatnet.preflight.report import some

ENDINGS = ('.bmp', '.gif', '.jfif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
NO_CLASS = ('background', 'bg', 'unlabeled', 'unlabelled', 'void', 'ignore')
CROSS_ENTROPY = ('CrossEntropyLoss', 'OhemCrossEntropy')

# A picture and its mask.
Pair = tuple[str, str | None]


class Mask(NamedTuple):
    """The shape of a mask, and how many of its pixels have which value."""

    shape: tuple[int, ...]
    values: Counter


@dataclass
class Job(report.Job):
    """One data set of a segmentor, and what its masks mean."""

    def __post_init__(self) -> None:
        steps = list(self.settings.get('pipeline') or ())
        self.load_mask = next((step for step in steps if kind(step) == 'LoadAnnotations'), None)
        self.resizes = self.split == 'train' and any('Resize' in kind(step) for step in steps)
        self.classes = self.dataset.metainfo.get('classes') or ()
        self.reduce = self.dataset.reduce_zero_label
        judges = [part for _, part in _heads_of(self.cfg)]
        if self.split != 'train':
            metrics = parts_of(self.cfg.get(f'{self.split}_evaluator'))
            judges = [metric for _, metric in metrics if kind(metric) == 'IoUMetric']
        self.ignored = {part.get('ignore_index', 255) for part in judges} or {255}
        # What a user's own steps or metrics do is not known.
        self.sure = bool(judges) and all(_is_of(TRANSFORMS, s, 'mmcv.', 'mmseg.') for s in steps)

    def label(self, value: int) -> int:
        """The label that a mask's value becomes, as LoadAnnotations has it."""
        value %= 256
        if self.reduce:
            value = 255 if value in (0, 255) else value - 1
        return (self.dataset.label_map or {}).get(value, value)

    def labels(self, values: Counter) -> set[int]:
        """The labels that count."""
        return set(map(self.label, values)) - self.ignored


def check_segmentation(job: report.Job) -> None:
    """Looks at one data set of a segmentor."""
    classes = job.dataset.metainfo.get('classes')
    if not isinstance(job.dataset, BaseSegDataset) or not is_local('', job.dataset.backend_args):
        job.note(f'{kind(job.settings)} is not checked, as its files are not known')
    elif isinstance(classes, str):
        job.report.errors.append(text_instead_of_names(job.where, classes))
    else:
        job = Job(**vars(job))
        # Without masks, heads may learn something else, such as depth.
        if not job.load_mask or _check_heads(job):
            _check_against_training(job)
            if pairs := _find_pairs(job):
                _check_files(job, pairs)


def why_not_built(where: str, settings: ConfigDict) -> str | None:
    """Says why MMSegmentation cannot build a dataset whose type has classes of its own."""
    own = getattr(class_of(DATASETS, settings), 'METAINFO', {}).get('classes')
    names = (settings.get('metainfo') or {}).get('classes')
    if own and isinstance(names, str):
        return text_instead_of_names(where, names)
    if not own or not (other := [name for name in names or () if name not in own]):
        return None
    return (
        f'{where}: metainfo.classes names {some(other)}, which {kind(settings)} does not know, as '
        f"it has {len(own)} classes of its own; set type='BaseSegDataset' with img_suffix, "
        'seg_map_suffix and reduce_zero_label as your files need them.'
    )


def _is_of(registry: Registry, part: dict, *modules: str) -> bool:
    made = class_of(registry, part)
    return made is not None and made.__module__.startswith(modules)


def _heads_of(cfg: Config) -> Iterator[tuple[str, dict]]:
    """Yields the segmentor's heads, each with its place in the config."""
    for place, part in parts_of(cfg.get('model'), 'model'):
        if re.fullmatch(r'model\.(decode|auxiliary)_head(\[\d+\])?', place):
            yield place, part


def _check_heads(job: Job) -> bool:
    """Compares heads and classes; returns whether there are classes to choose from."""
    n = len(job.classes)
    for place, head in _heads_of(job.cfg):
        number, sure = head.get('num_classes'), _is_of(MODELS, head, 'mmseg.')
        # STDC's learns edges.
        if not (number and n) or kind(head) == 'STDCHead':
            continue
        one_channel = (head.get('out_channels') or number) == 1
        losses = dict(parts_of(head, place))
        softmax = 'loss_decode' not in head or any(
            kind(loss) in CROSS_ENTROPY and not loss.get('use_sigmoid') for loss in losses.values()
        )
        if n == 1 or (one_channel and softmax):
            texts = job.report.errors if sure else job.report.notes
            texts.append(
                f'{place}.num_classes={number}: with one class there is nothing to choose from, '
                'the loss and mIoU mean nothing; what works is metainfo=dict(classes=('
                f"'background', {job.classes[-1]!r})), num_classes=2 and reduce_zero_label=False "
                'with 0 for the background in masks, or (not with Mask2Former) the same with '
                "out_channels=1, threshold=0.5 and loss_decode=dict(type='CrossEntropyLoss', "
                'use_sigmoid=True).'
            )
            return not sure
        if one_channel and n == 2:
            continue
        check_number(job, f'{place}.num_classes', number, job.classes, sure)
        for loss, part in losses.items():
            weights = part.get('class_weight')
            # Queries may also be no object.
            wanted = number + loss.endswith('loss_cls')
            if isinstance(weights, (list, tuple)) and len(weights) != wanted:
                job.report.errors.append(
                    f'{loss}.class_weight has {len(weights)} numbers, but num_classes={number} '
                    f'needs {wanted}.'
                )
    return True


def _check_against_training(job: Job) -> None:
    """Compares how labels come about with how they do in training."""
    trained = datasets_of_training(job.cfg) if job.split != 'train' else []
    for name in ('classes', 'reduce_zero_label'):
        own, *others = (d.metainfo.get(name) for d in (job.dataset, *trained))
        if others and None not in (own, *others) and own not in others:
            job.refuse(
                f'{name} is {own}, but {others[0]} in train_dataloader, so that labels mean '
                'something else than in training; give both the same'
            )


def _find_pairs(job: Job) -> list[Pair]:
    """Finds each picture with its mask, and says what is missing or left out."""
    dataset = job.dataset
    listed = dataset.ann_file if not os.path.isdir(dataset.ann_file) else ''
    keys = ('img_path', 'seg_map_path') if job.load_mask else ('img_path',)
    folders = {f'data_prefix.{key}': dataset.data_prefix.get(key) for key in keys}
    if not are_there(job, folders | dict(ann_file=listed)):
        return []
    # Else, an empty list of pictures could not be told from one that may be read.
    dataset.serialize_data = False
    if all_infos := dataset.load_data_list():
        # The dataset is asked again, as it may use a part of its files alone, as with 'indices'.
        dataset.full_init()
    infos = dataset.data_list if all_infos else []
    pairs = [(i['img_path'], i.get('seg_map_path') if job.load_mask else None) for i in infos]
    if listed and not pairs:
        job.refuse(f'{listed} lists no picture')
    elif not listed and dataset._indices is None:
        _say_left_out(job, pairs, *folders.values())
    return _keep_present(job, pairs)


def _pictures_in(folder: str) -> list[str]:
    """All pictures below a folder, as their names tell."""
    return [
        os.path.normpath(os.path.join(at, name))
        for at, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(ENDINGS) and not name.startswith('.')
    ]


def _say_left_out(job: Job, pairs: list[Pair], folder: str, masks: str | None = None) -> None:
    """Says which pictures and masks are not used."""
    suffix, mask_suffix = job.dataset.img_suffix, job.dataset.seg_map_suffix
    used = {os.path.normpath(path) for pair in pairs for path in pair if path}
    left = {'pictures': [path for path in _pictures_in(folder) if path not in used]}
    if not pairs:
        ends = Counter(os.path.splitext(path)[1] for path in left['pictures'])
        way = f'set img_suffix={max(ends, key=ends.get)!r}' if ends else 'correct data_prefix'
        job.refuse(
            f'none of the {ends.total():,} pictures in {folder} ends with img_suffix={suffix!r}, '
            f'but with {some(ends) or "-"}; {way}'
        )
        return
    if masks and not os.path.samefile(folder, masks):
        # Beside masks, Cityscapes has files of other kinds.
        there = [path for path in _pictures_in(masks) if path.endswith(mask_suffix)]
        left['masks'] = [path for path in there if path not in used]
    for what, paths in left.items():
        if paths:
            job.note(
                f'{len(paths):,} {what} in {folder if what == "pictures" else masks} are left out '
                f'by img_suffix={suffix!r} and seg_map_suffix={mask_suffix!r}: '
                f'{some(sorted(map(os.path.basename, paths)))}'
            )


def _keep_present(job: Job, pairs: list[Pair]) -> list[Pair]:
    """Says which files are missing, and returns the pairs of which none is."""
    dataset = job.dataset
    suffixes = f'img_suffix={dataset.img_suffix!r}, seg_map_suffix={dataset.seg_map_suffix!r}'

    def way(path: str) -> str:
        folder, name = os.path.split(path)
        stem = name.removesuffix(dataset.seg_map_suffix)
        for other in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            if other.startswith(stem) and other != name and not other.endswith(dataset.img_suffix):
                return f'{other} is there: set seg_map_suffix={other.removeprefix(stem)!r}'
        return f'names follow from {dataset.ann_file or "pictures"} and {suffixes}; add the files, or take their names away'

    missing = say_missing(job, [picture for picture, _ in pairs], 'pictures', way)
    pairs = [pair for pair in pairs if pair[0] not in missing]
    missing = say_missing(job, [mask for _, mask in pairs if mask], 'masks', way)
    return [pair for pair in pairs if pair[1] not in missing]


def _check_files(job: Job, pairs: list[Pair]) -> None:
    """Reads pictures and masks as the pipeline does, and judges what is in them."""
    sizes = read_pictures(job, [picture for picture, _ in pairs])
    found = dict(folder=job.dataset.data_prefix['img_path'], pictures=len(pairs))
    found['pictures read'] = len(sizes)
    job.report.count('Data', job.split, found | size_rows(sizes.values()))
    if not job.load_mask:
        if job.split != 'test':
            job.note('no mask is read, as its pipeline has no LoadAnnotations')
        return
    other = job.load_mask.get('reduce_zero_label')
    if other not in (None, job.reduce):
        job.refuse(
            f'reduce_zero_label={job.reduce} in the dataset, but {other} in LoadAnnotations of its '
            'pipeline; give both the same, True where 0 in a mask is no class, False where it is '
            'the first one'
        )
        return
    paths = [mask for _, mask in pairs if mask]
    masks = read_sample(job, paths, 'masks', partial(_read_mask, job.load_mask))
    if deep := [path for path, mask in masks.items() if len(mask.shape) != 2]:
        job.refuse(
            f'{len(deep):,} of {len(masks):,} masks read have the shape {masks[deep[0]].shape} of '
            'RGB pictures instead of one channel; colours are no labels, save the number of the '
            'class of each pixel, or one channel where the channels are equal (gray or palette '
            f'PNG): {some(deep, 3)}',
            job.sure,
        )
    elif masks:
        _check_sizes(job, pairs, sizes, masks)
        _check_values(job, masks, paths)
        _show(job, masks)


def _read_mask(load: ConfigDict, path: str) -> Mask:
    """Reads a mask as LoadAnnotations does, but for the values."""
    with open(path, 'rb') as file:
        content = file.read()
    backend = load.get('imdecode_backend', 'pillow')
    pixels = mmcv.imfrombytes(content, flag='unchanged', backend=backend).squeeze()
    values, counts = np.unique(pixels, return_counts=True)
    return Mask(pixels.shape, Counter(dict(zip(values.astype(int).tolist(), counts.tolist()))))


def _check_sizes(job: Job, pairs: list[Pair], sizes: dict, masks: dict[str, Mask]) -> None:
    read = [pair for pair in pairs if pair[0] in sizes and pair[1] in masks]
    other = [pair for pair in read if sizes[pair[0]] != masks[pair[1]].shape]
    if not other:
        return
    shapes = [(*sizes[picture], *masks[mask].shape) for picture, mask in other]
    (picture, mask), (height, width, rows, columns) = other[0], shapes[0]
    # Resize brings a smaller mask to the picture's size, but in training alone.
    repaired = job.resizes and all(h * columns == w * rows for h, w, rows, columns in shapes)
    job.refuse(
        f'{len(other):,} of {len(read):,} masks read have another size than their picture, '
        f'{mask} {columns}x{rows}, {picture} {width}x{height}; make both the same, without '
        'interpolating the mask',
        job.sure and not repaired,
    )


def _check_values(job: Job, masks: dict[str, Mask], paths: list[str]) -> None:
    """Judges the values in masks by the classes."""
    n, first = len(job.classes), int(job.reduce)
    values = sorted(set().union(*(mask.values for mask in masks.values())))
    found = f'values found: {some(values, 12)}'
    beyond = [
        value
        for value in values
        if (label := job.label(value)) not in job.ignored and not (-1 <= value < 256 and label < n)
    ]
    if not n:
        job.note(f'{found}; what they should be is not known')
    elif not beyond:
        _check_used(job, masks, paths, found)
    else:
        way = 'correct the masks, or name all classes in metainfo.classes'
        if len(beyond) > 20:
            way = 'so many come from lossy or interpolated masks, make them anew'
        elif beyond == [n] and not first:
            way = 'set reduce_zero_label=True if 0 is no class, or name the class that is missing'
        example = next(path for path, mask in masks.items() if beyond[0] in mask.values)
        job.refuse(
            f'the value {some(beyond, 8)} in masks ({example}) is none of the {n} classes, which '
            f'are {first} to {first + n - 1} as reduce_zero_label={job.reduce}, nor ignored as '
            f'{some(job.ignored)} is, {found}; {way}',
            job.sure,
        )


def _check_used(job: Job, masks: dict[str, Mask], paths: list[str], found: str) -> None:
    """Judges which classes have pixels at all."""
    classes, first, last = job.classes, int(job.reduce), len(job.classes) - 1
    used = set().union(*(job.labels(mask.values) for mask in masks.values()))
    zero_dropped = job.reduce and any(0 in mask.values for mask in masks.values())
    # The masks of data sets that MMSegmentation knows are as it says.
    own = not (type(job.dataset).METAINFO and _is_of(DATASETS, job.settings, 'mmseg.'))
    named = classes[0].strip('_ ').lower() in NO_CLASS
    shifted = zero_dropped and own and named and last not in used
    if len(used) < 2 or shifted:
        # Rare classes may be missing in a sample: nobody is refused before all masks were read.
        rest = [path for path in paths if path not in masks]
        for _, mask in read_each(job, rest, partial(_read_mask, job.load_mask)):
            used |= job.labels(mask.values) if isinstance(mask, Mask) else set()
            if last in used and len(used) > 1:
                break
    if shifted and last not in used:
        job.refuse(
            f'reduce_zero_label=True drops 0, which seems to be the first class, {classes[0]!r} '
            f'({found}), so that each class gets the name of the one before; set '
            'reduce_zero_label=False in the dataset and in LoadAnnotations',
            job.sure,
        )
    elif len(used) < 2:
        only = f'only {classes[min(used)]!r} has pixels' if used else 'no class has pixels'
        drops = ' and 0 too, as reduce_zero_label=True' if job.reduce else ''
        way = ', or set reduce_zero_label=False if 0 is one' if zero_dropped else ''
        job.refuse(
            f'{only} ({found}; {some(job.ignored)} is ignored{drops}), so that there is nothing to '
            f'learn; give the classes the values {first} to {first + last}{way}',
            job.sure and job.split == 'train',
        )
    elif len(masks) == len(paths) and (unused := set(range(len(classes))) - used):
        job.note(f'no mask has pixels of {some(classes[i] for i in sorted(unused))}')


def _show(job: Job, masks: dict[str, Mask]) -> None:
    """Adds the share of each class."""
    pixels = Counter()
    for mask in masks.values():
        for value, count in mask.values.items():
            pixels[job.label(value)] += count
    names = dict.fromkeys(job.ignored, 'ignored') | dict(enumerate(job.classes))
    shares = {
        str(names.get(label, label)): f'{100 * count / pixels.total():.1f} %'
        for label, count in pixels.most_common()
    }
    job.report.count('Pixels of the masks read', job.split, shares)
