"""What can be wrong with the pictures and masks of a segmentor."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

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


@dataclass
class Job(report.Job):
    """One data set of a segmentor, and what its masks mean."""

    def __post_init__(self) -> None:
        steps = list(self.settings.get('pipeline') or ())
        self.load_mask = next((step for step in steps if kind(step) == 'LoadAnnotations'), None)
        self.classes = self.dataset.metainfo.get('classes') or ()
        self.reduce = self.dataset.reduce_zero_label
        # Steps of a user's own may change masks, so that what looks wrong here need not be.
        self.sure = all(_comes_from(TRANSFORMS, step, ('mmcv.', 'mmseg.')) for step in steps)
        self.resizes = self.split == 'train' and any('Resize' in kind(step) for step in steps)
        self.ignored = self._ignored()

    def _ignored(self) -> int | None:
        """The label that does not count, None where that is not known."""
        if self.split == 'train':
            asked = [head for _, head in _heads_of(self.cfg)]
        else:
            metrics = _listed(self.cfg.get(f'{self.split}_evaluator'))
            asked = [metric for metric in metrics if kind(metric) == 'IoUMetric']
        labels = {part.get('ignore_index', 255) for part in asked}
        return labels.pop() if len(labels) == 1 else None

    def label(self, value: int) -> int:
        """The label that a mask's value becomes, as LoadAnnotations has it."""
        value %= 256
        if self.reduce:
            value = 255 if value in (0, 255) else value - 1
        return (self.dataset.label_map or {}).get(value, value)


@dataclass
class Mask:
    """What is in a mask: its shape, how many pixels have which value, and if channels are equal."""

    shape: tuple[int, ...]
    values: dict[int, int]
    gray: bool


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
        f"it has {len(own)} classes of its own; set type='BaseSegDataset' with "
        f'img_suffix, seg_map_suffix and reduce_zero_label as your files need them.'
    )


def _listed(part: dict | list | None) -> list[dict]:
    return [part] if isinstance(part, dict) else part or []


def _comes_from(registry: Registry, part: dict, modules: str | tuple[str, ...]) -> bool:
    made = class_of(registry, part)
    return made is not None and made.__module__.startswith(modules)


def _heads_of(cfg: Config) -> Iterator[tuple[str, ConfigDict]]:
    """Yields the segmentor's heads, each with its name in the config."""
    for name in ('decode_head', 'auxiliary_head'):
        heads = (cfg.get('model') or {}).get(name)
        for i, head in enumerate(_listed(heads)):
            yield f'model.{name}' + (f'[{i}]' if isinstance(heads, list) else ''), head


def _check_heads(job: Job) -> bool:
    """Compares heads and classes; returns whether there are classes to choose from."""
    n = len(job.classes)
    for name, head in _heads_of(job.cfg):
        number = head.get('num_classes')
        # STDC's learns edges.
        if not (number and n) or kind(head) == 'STDCHead':
            continue
        sure = _comes_from(MODELS, head, 'mmseg.')
        one_channel = (head.get('out_channels') or number) == 1
        if n == 1 or (one_channel and _has_softmax(head)):
            texts = job.report.errors if sure else job.report.notes
            texts.append(f'{name}.num_classes={number}: {_one_class(job.classes, head)}')
            return not sure
        if not one_channel:
            _check_weights(job, name, head)
        if not one_channel or n != 2:
            check_number(job, f'{name}.num_classes', number, job.classes, sure)
    return True


def _has_softmax(head: ConfigDict) -> bool:
    losses = _listed(head.get('loss_decode')) or [dict(type='CrossEntropyLoss')]
    return any(kind(loss) in CROSS_ENTROPY and not loss.get('use_sigmoid') for loss in losses)


def _one_class(classes: list[str], head: ConfigDict) -> str:
    sigmoid = (
        ', or the same with out_channels=1, threshold=0.5 and '
        "loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)"
    )
    return (
        'with one class there is nothing to choose from, the loss and mIoU mean nothing; what '
        f"works is metainfo=dict(classes=('background', {classes[-1]!r})), num_classes=2 and "
        'reduce_zero_label=False with 0 for the background in masks'
        f'{"" if "loss_cls" in head else sigmoid}.'
    )


def _check_weights(job: Job, name: str, head: ConfigDict) -> None:
    # The queries of a Mask2Former may also be no object.
    for loss, length in (('loss_decode', head.num_classes), ('loss_cls', head.num_classes + 1)):
        for part in _listed(head.get(loss)):
            weights = part.get('class_weight')
            if isinstance(weights, (list, tuple)) and len(weights) != length:
                job.report.errors.append(
                    f'{name}.{loss}.class_weight has {len(weights)} numbers, but '
                    f'num_classes={head.num_classes} needs {length}.'
                )


def _check_against_training(job: Job) -> None:
    """Compares how labels come about with how they do in training."""
    trained = datasets_of_training(job.cfg) if job.split != 'train' else []
    for name in ('classes', 'reduce_zero_label'):
        own, *others = (d.metainfo.get(name) for d in (job.dataset, *trained))
        if others and own is not None and all(o is not None and o != own for o in others):
            own, other = (f'({some(v, 8)})' if name == 'classes' else v for v in (own, others[0]))
            job.refuse(
                f'{name} is {own}, but {other} in train_dataloader, so that labels mean something '
                'else than in training; give both the same'
            )


def _find_pairs(job: Job) -> list[Pair]:
    """Finds each picture with its mask, and says what is missing or left out."""
    dataset, prefix = job.dataset, job.dataset.data_prefix
    listed = dataset.ann_file if not os.path.isdir(dataset.ann_file) else ''
    paths = {f'data_prefix.{k}': prefix.get(k) for k in ('img_path', 'seg_map_path')}
    if not job.load_mask:
        paths.popitem()
    if not are_there(job, paths | dict(ann_file=listed)):
        return []
    if not dataset.load_data_list():
        job.refuse(f'{listed} lists no picture' if listed else _no_picture(dataset))
        return []
    # The dataset is asked again, as it may use a part of its files alone, as with 'indices'.
    dataset.serialize_data = False
    dataset.full_init()
    infos = dataset.data_list
    pairs = [(i['img_path'], i.get('seg_map_path') if job.load_mask else None) for i in infos]
    if not listed and dataset._indices is None:
        _say_left_out(job, pairs)
    return _keep_present(job, pairs)


def _no_picture(dataset: BaseSegDataset) -> str:
    folder = dataset.data_prefix['img_path']
    ends = Counter(os.path.splitext(path)[1] for path in _pictures_in(folder))
    if not ends:
        return f'there is no picture in {folder}; data_root and data_prefix.img_path name it'
    return (
        f'none of the {ends.total():,} pictures in {folder} ends with img_suffix='
        f'{dataset.img_suffix!r}, but with {some(ends)}; set img_suffix='
        f'{ends.most_common(1)[0][0]!r}'
    )


def _pictures_in(folder: str) -> list[str]:
    """All pictures below a folder, as their names tell."""
    return [
        os.path.normpath(os.path.join(at, name))
        for at, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(ENDINGS) and not name.startswith('.')
    ]


def _say_left_out(job: Job, pairs: list[Pair]) -> None:
    """Says which pictures and masks are not used."""
    dataset = job.dataset
    folder, masks = (dataset.data_prefix.get(key) for key in ('img_path', 'seg_map_path'))
    used = {os.path.normpath(path) for pair in pairs for path in pair if path}
    left = {'pictures': (folder, [path for path in _pictures_in(folder) if path not in used])}
    if job.load_mask and not os.path.samefile(folder, masks):
        # Beside masks, Cityscapes has files of other kinds.
        there = [path for path in _pictures_in(masks) if path.endswith(dataset.seg_map_suffix)]
        left['masks'] = masks, [path for path in there if path not in used]
    for what, (root, paths) in left.items():
        if paths:
            job.note(
                f'{len(paths):,} {what} in {root} are left out by img_suffix='
                f'{dataset.img_suffix!r} and seg_map_suffix={dataset.seg_map_suffix!r}: '
                f'{some(sorted(map(os.path.basename, paths)))}'
            )


def _keep_present(job: Job, pairs: list[Pair]) -> list[Pair]:
    """Says which files are missing, and returns the pairs of which none is."""
    dataset = job.dataset

    def way_to_picture(path: str) -> str:
        listed = f'{dataset.ann_file} lists them, without img_suffix={dataset.img_suffix!r}'
        return listed if dataset.ann_file else 'replace them'

    missing = say_missing(job, [picture for picture, _ in pairs], 'pictures', way_to_picture)
    masks = [mask for picture, mask in pairs if mask and picture not in missing]
    missing |= say_missing(job, masks, 'masks', partial(_way_to_mask, dataset))
    return [pair for pair in pairs if not missing & set(pair)]


def _way_to_mask(dataset: BaseSegDataset, mask: str) -> str:
    folder, name = os.path.split(mask)
    stem = name.removesuffix(dataset.seg_map_suffix)
    way = 'add the masks or take these pictures away'
    for other in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if other.startswith(stem) and other != name and not other.endswith(dataset.img_suffix):
            way = f'{other} is there: set seg_map_suffix={other.removeprefix(stem)!r}'
            break
    return (
        f'a mask is named as its picture, with seg_map_suffix={dataset.seg_map_suffix!r} for '
        f'img_suffix={dataset.img_suffix!r}; {way}'
    )


def _check_files(job: Job, pairs: list[Pair]) -> None:
    """Reads pictures and masks as the pipeline does, and judges what is in them."""
    sizes = read_pictures(job, [picture for picture, _ in pairs])
    found = {'folder': job.dataset.data_prefix['img_path'], 'pictures': len(pairs)}
    found['pictures read'] = len(sizes)
    job.report.count('Data', job.split, found | size_rows(sizes.values()))
    if not job.load_mask:
        if job.split != 'test':
            job.note('no mask is read, as its pipeline has no LoadAnnotations')
        return
    paths = [mask for _, mask in pairs if mask]
    masks = read_sample(job, paths, 'masks', partial(_read_mask, job.load_mask))
    if masks and _are_flat(job, masks) and _reduce_agrees(job):
        _check_sizes(
            job, [(*pair, sizes.get(pair[0])) for pair in pairs if pair[1] in masks], masks
        )
        _check_values(job, masks, paths)
        _show(job, masks)


def _read_mask(load: ConfigDict, path: str) -> Mask:
    """Reads a mask as LoadAnnotations does, but for the values."""
    with open(path, 'rb') as file:
        content = file.read()
    backend = load.get('imdecode_backend', 'pillow')
    pixels = mmcv.imfrombytes(content, flag='unchanged', backend=backend).squeeze()
    values, counts = np.unique(pixels, return_counts=True)
    gray = pixels.ndim == 3 and bool((pixels == pixels[..., :1]).all())
    return Mask(pixels.shape, dict(zip(values.astype(int).tolist(), counts.tolist())), gray)


def _are_flat(job: Job, masks: dict[str, Mask]) -> bool:
    deep = {path: mask for path, mask in masks.items() if len(mask.shape) != 2}
    if deep:
        way = 'colours are no labels, save the number of the class of each pixel'
        if all(mask.gray for mask in deep.values()):
            way = 'as the channels are equal, save one of them'
        job.refuse(
            f'{len(deep):,} of {len(masks):,} masks read have the shape '
            f'{next(iter(deep.values())).shape} of RGB pictures instead of one channel; {way} '
            f'(gray or palette PNG): {some(deep, 3)}',
            job.sure,
        )
    return not deep


def _reduce_agrees(job: Job) -> bool:
    other = job.load_mask.get('reduce_zero_label')
    if other not in (None, job.reduce):
        job.refuse(
            f'reduce_zero_label={job.reduce} in the dataset, but {other} in LoadAnnotations of its '
            'pipeline; give both the same, True where 0 in a mask is no class, False where it is '
            'the first one'
        )
    return other in (None, job.reduce)


def _check_sizes(job: Job, looks: list[tuple], masks: dict[str, Mask]) -> None:
    other = [
        (picture, *size, path, *masks[path].shape)
        for picture, path, size in looks
        if size not in (None, masks[path].shape)
    ]
    if other:
        picture, height, width, path, rows, columns = other[0]
        # Resize brings a smaller mask to the picture's size, but in training alone.
        same_shape = all(h * columns == w * rows for _, h, w, _, rows, columns in other)
        turned = ' turned by its EXIF' if (columns, rows) == (height, width) else ''
        job.refuse(
            f'{len(other):,} of {len(looks):,} masks read have another size than their picture, '
            f'{path} {columns}x{rows}, {picture} {width}x{height}{turned}; make both the same, '
            'without interpolating the mask',
            job.sure and not (job.resizes and same_shape),
        )


def _check_values(job: Job, masks: dict[str, Mask], paths: list[str]) -> None:
    """Judges the values in masks by the classes."""
    ignored, n, first = job.ignored, len(job.classes), int(job.reduce)
    values = sorted({value for mask in masks.values() for value in mask.values})
    found = f'values found: {some(values, 12)}'
    if not n or ignored is None:
        job.note(f'{found}; what they should be is not known')
        return
    known = [v for v in values if job.label(v) == ignored or -1 <= v < 256 and job.label(v) < n]
    beyond = sorted(set(values) - set(known))
    if not beyond:
        _check_used(job, masks, paths, found)
        return
    way = 'correct the masks, or name all classes in metainfo.classes'
    if len(beyond) > 20:
        way = 'so many come from lossy or interpolated masks, make them anew'
    elif beyond == [n] and not job.reduce:
        way = 'set reduce_zero_label=True if 0 is no class, or name the class that is missing'
    example = next(path for path, mask in masks.items() if beyond[0] in mask.values)
    job.refuse(
        f'the value {some(beyond, 8)} in masks ({example}) is none of the {n} classes, which are '
        f'{first} to {first + n - 1} as reduce_zero_label={job.reduce}, nor ignored as {ignored} '
        f'is, {found}; {way}',
        job.sure,
    )


def _check_used(job: Job, masks: dict[str, Mask], paths: list[str], found: str) -> None:
    """Judges which classes have pixels at all."""
    classes, last = job.classes, len(job.classes) - 1
    values = {value for mask in masks.values() for value in mask.values}
    used = {job.label(value) for value in values} - {job.ignored}
    zero_dropped = job.reduce and 0 in values
    # The masks of data sets that MMSegmentation knows are as it says.
    own = not (type(job.dataset).METAINFO and type(job.dataset).__module__.startswith('mmseg.'))
    named = classes[0].strip('_ ').lower() in NO_CLASS
    shifted = zero_dropped and own and named and last not in used
    if len(used) < 2 or shifted:
        # Rare classes may be missing in a sample: nobody is refused before all masks were read.
        rest = [path for path in paths if path not in masks]
        for _, mask in read_each(job, rest, partial(_read_mask, job.load_mask)):
            if isinstance(mask, Mask):
                used |= {job.label(value) for value in mask.values} - {job.ignored}
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
            f'{only} ({found}; {job.ignored} is ignored{drops}), so that there is nothing to '
            f'learn; the classes have the values {int(job.reduce)} to {int(job.reduce) + last}{way}',
            job.sure and job.split == 'train',
        )
    elif len(masks) == len(paths) and (unused := set(range(len(classes))) - used):
        unused = some(classes[i] for i in sorted(unused))
        job.note(f'classes that have no pixel in any mask: {unused}')


def _show(job: Job, masks: dict[str, Mask]) -> None:
    """Adds the share of each class."""
    pixels = Counter()
    for mask in masks.values():
        for value, count in mask.values.items():
            pixels[job.label(value)] += count
    names = {job.ignored: 'ignored', **dict(enumerate(job.classes))}
    shares = {
        str(names.get(label, label)): f'{100 * count / pixels.total():.1f} %'
        for label, count in pixels.most_common()
    }
    job.report.count('Pixels of the masks read', job.split, shares)
