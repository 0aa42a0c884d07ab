"""Checks of the pictures and masks of a segmentor."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import mmcv
import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import Registry
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, MODELS, TRANSFORMS

from mmhatnet.preflight.pictures import (
    ENDINGS,
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

NO_CLASS = ('background', 'bg', 'unlabeled', 'unlabelled', 'void', 'ignore')
CROSS_ENTROPY = ('CrossEntropyLoss', 'OhemCrossEntropy')


@dataclass
class Job:
    """A dataset of a segmentor, and where to say what was found in it."""

    cfg: Config
    split: str
    settings: ConfigDict
    dataset: BaseSegDataset
    report: Report

    def __post_init__(self) -> None:
        self.where = f'{self.split}_dataloader.dataset'
        self.steps = list(self.settings.get('pipeline') or ())
        self.load_mask = next((s for s in self.steps if kind(s) == 'LoadAnnotations'), None)
        self.classes = self.dataset.metainfo.get('classes')
        self.reduce = self.dataset.reduce_zero_label
        known = all(made_by(TRANSFORMS, step, ('mmcv.', 'mmseg.')) for step in self.steps)
        # Steps of a user's own may change masks, so that what looks wrong here need not be.
        self.texts = self.report.errors if known else self.report.notes

    def label(self, value: int) -> int:
        """The label that a mask's value becomes, as LoadAnnotations has it."""
        value %= 256
        if self.reduce:
            value = 255 if value in (0, 255) else value - 1
        return (self.dataset.label_map or {}).get(value, value)

    def ignored(self) -> int | None:
        """The label that does not count, None where that is not known."""
        if self.split == 'train':
            asked = [head for _, head in heads_of(self.cfg)]
        else:
            metrics = self.cfg.get(f'{self.split}_evaluator') or []
            metrics = [metrics] if isinstance(metrics, dict) else metrics
            asked = [metric for metric in metrics if kind(metric) == 'IoUMetric']
        labels = {part.get('ignore_index', 255) for part in asked}
        return labels.pop() if len(labels) == 1 else None


@dataclass
class Mask:
    """What is in the file of a mask: its shape, and how many pixels have which value."""

    path: str
    shape: tuple[int, ...]
    values: dict[int, int]
    gray: bool


def check_segmentation(
    cfg: Config,
    split: str,
    settings: ConfigDict,
    dataset: BaseDataset,
    report: Report,
    every: bool,
) -> None:
    """Looks at one dataset of a segmentor.

    Args:
        cfg (Config): The job's config.
        split (str): 'train', 'val' or 'test'.
        settings (ConfigDict): The dataset's own part of the config.
        dataset (BaseDataset): The dataset, built lazily and without its pipeline.
        report (Report): Where to say what was found.
        every (bool): Whether to read all pictures and masks instead of a sample of them.
    """
    where = f'{split}_dataloader.dataset'
    if not isinstance(dataset, BaseSegDataset) or settings.get('backend_args'):
        report.notes.append(f'{where}: {kind(settings)} is not checked, its files are not known.')
    elif isinstance(dataset.metainfo.get('classes'), str):
        report.errors.append(text_instead_of_names(where, dataset.metainfo['classes']))
    else:
        job = Job(cfg, split, settings, dataset, report)
        # Without masks, heads may learn something else, such as depth.
        if not job.load_mask or check_heads(job):
            check_against_training(job)
            pairs = find_pairs(job)
            if pairs:
                check_files(job, pairs, every)


def why_not_built(where: str, settings: ConfigDict) -> str | None:
    """Says why MMSegmentation cannot build a dataset whose type has classes of its own."""
    made = DATASETS.get(settings['type']) if isinstance(settings['type'], str) else settings['type']
    own = getattr(made, 'METAINFO', {}).get('classes')
    names = (settings.get('metainfo') or {}).get('classes')
    if not own or not names:
        return None
    if isinstance(names, str):
        return text_instead_of_names(where, names)
    other = [name for name in names if name not in own]
    if not other:
        return None
    return (
        f'{where}: metainfo.classes names {some(other)}, which {kind(settings)} does not know, as '
        f"it has {len(own)} classes of its own; set type='BaseSegDataset' with "
        f'img_suffix, seg_map_suffix and reduce_zero_label as your files need them.'
    )


def heads_of(cfg: Config) -> Iterator[tuple[str, ConfigDict]]:
    """Yields the segmentor's heads, each with its name in the config."""
    for name in ('decode_head', 'auxiliary_head'):
        heads = (cfg.get('model') or {}).get(name) or []
        if isinstance(heads, dict):
            yield f'model.{name}', heads
        else:
            yield from ((f'model.{name}[{i}]', head) for i, head in enumerate(heads))


def check_heads(job: Job) -> bool:
    """Compares heads and classes; returns whether there are classes to choose from."""
    n = len(job.classes or ())
    for name, head in heads_of(job.cfg):
        given = head.get('num_classes')
        if not (given and n):
            continue
        one_channel = (head.get('out_channels') or given) == 1
        for loss, length in (('loss_decode', given), ('loss_cls', given + 1)):
            for part in losses_of(head, loss):
                weights = part.get('class_weight')
                if (
                    isinstance(weights, (list, tuple))
                    and len(weights) != length
                    and not one_channel
                ):
                    job.report.errors.append(
                        f'{name}.{loss}.class_weight has {len(weights)} numbers, but '
                        f'num_classes={given} needs {length}.'
                    )
        # STDC's learns edges.
        if (given == n > 1 and not one_channel) or kind(head) == 'STDCHead':
            continue
        sure = made_by(MODELS, head, 'mmseg.')
        texts = job.report.errors if sure else job.report.notes
        says = f'{name}.num_classes={given}'
        counted = f'{says}, but the dataset has {n} classes ({some(job.classes)})'
        if n == 1 or (one_channel and softmax(head)):
            texts.append(f'{says}: {one_class(job.classes, head)}')
            return not sure
        if given < n and not (one_channel and n == 2):
            texts.append(f'{counted}; set it to {n}, or metainfo.classes to the classes meant.')
        elif given > n:
            job.report.notes.append(f'{counted}: the others learn nothing, which is allowed.')
    return True


def made_by(registry: Registry, part: ConfigDict, modules: str | tuple[str, ...]) -> bool:
    """Whether the type of a part of the config comes from certain packages."""
    made = registry.get(part['type']) if isinstance(part['type'], str) else part['type']
    return made is not None and made.__module__.startswith(modules)


def losses_of(head: ConfigDict, name: str) -> list[ConfigDict]:
    losses = head.get(name) or []
    return [losses] if isinstance(losses, dict) else losses


def softmax(head: ConfigDict) -> bool:
    losses = losses_of(head, 'loss_decode') or [dict(type='CrossEntropyLoss')]
    return any(kind(loss) in CROSS_ENTROPY and not loss.get('use_sigmoid') for loss in losses)


def one_class(classes: list[str], head: ConfigDict) -> str:
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


def check_against_training(job: Job) -> None:
    """Compares how labels come about with how they do in training."""
    trained = datasets_of_training(job.cfg) if job.split != 'train' else []
    for name in ('classes', 'reduce_zero_label'):
        own, *others = (d.metainfo.get(name) for d in (job.dataset, *trained))
        if others and own is not None and all(o is not None and o != own for o in others):
            own, other = (f'({some(v, 8)})' if name == 'classes' else v for v in (own, others[0]))
            job.report.errors.append(
                f'{job.where}: {name} is {own}, but {other} in train_dataloader, so that labels '
                'mean something else than in training; give both the same.'
            )


def find_pairs(job: Job) -> list[tuple[str, str | None]]:
    """Finds each picture with its mask, and says what is missing or left out."""
    dataset, where = job.dataset, job.where
    folder, masks = (dataset.data_prefix.get(k) for k in ('img_path', 'seg_map_path'))
    for key in ('img_path', 'seg_map_path')[: 2 if job.load_mask else 1]:
        if dataset.data_prefix.get(key) is None:
            job.report.errors.append(
                f'{where}: data_prefix={dict(dataset.data_prefix)} has no {key}; name the folder.'
            )
            return []
    listed = dataset.ann_file and not os.path.isdir(dataset.ann_file)
    for name, path, there in (
        ('data_prefix.img_path', folder, os.path.isdir),
        ('data_prefix.seg_map_path', job.load_mask and masks, os.path.isdir),
        ('ann_file', listed and dataset.ann_file, os.path.isfile),
    ):
        if path and not there(path):
            job.report.errors.append(
                f'{where}: {path} is not there; correct data_root, which it starts with, or {name}.'
            )
            return []
    if not dataset.load_data_list():
        job.report.errors.append(f'{where}: {no_picture(dataset, folder, listed)}')
        return []
    # The dataset is asked again, as it may use a part of its files alone, as with 'indices'.
    dataset.serialize_data = False
    dataset.full_init()
    infos = dataset.data_list
    pairs = [(i['img_path'], i.get('seg_map_path') if job.load_mask else None) for i in infos]
    if not listed:
        say_left_out(job, folder, masks, {mask for _, mask in pairs if mask})
    return keep_present(job, pairs)


def no_picture(dataset: BaseSegDataset, folder: str, listed: bool) -> str:
    if listed:
        return f'{dataset.ann_file} lists no picture.'
    ends = Counter(os.path.splitext(path)[1] for path in pictures_in(folder))
    if not ends:
        return f'there is no picture in {folder}; data_root and data_prefix.img_path name it.'
    return (
        f'none of the {ends.total():,} pictures in {folder} ends with img_suffix='
        f'{dataset.img_suffix!r}, but with {some(list(ends))}; set '
        f'img_suffix={ends.most_common(1)[0][0]!r}.'
    )


def pictures_in(folder: str) -> list[str]:
    """All pictures below a folder, as their names tell."""
    return [
        os.path.join(at, name)
        for at, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(ENDINGS) and not name.startswith('.')
    ]


def say_left_out(job: Job, folder: str, masks: str | None, used: set[str]) -> None:
    """Says which pictures the suffix leaves out, and which masks have no picture."""
    suffix, mask_suffix = job.dataset.img_suffix, job.dataset.seg_map_suffix
    together = masks and os.path.samefile(folder, masks)
    left = [path for path in pictures_in(folder) if not path.endswith(suffix)]
    if together:
        left = [path for path in left if not path.endswith(mask_suffix)]
    if left:
        job.report.notes.append(
            f'{job.where}: {len(left):,} pictures in {folder} are left out, as they do not end '
            f'with img_suffix={suffix!r}: {some([os.path.basename(path) for path in left])}.'
        )
    if used and not together and job.dataset._indices is None:
        used = {os.path.normpath(path) for path in used}
        there = (os.path.normpath(p) for p in pictures_in(masks) if p.endswith(mask_suffix))
        alone = sorted(os.path.basename(path) for path in there if path not in used)
        if alone:
            job.report.notes.append(
                f'{job.where}: {len(alone):,} masks in {masks} have no picture: {some(alone)}.'
            )


def keep_present(job: Job, pairs: list[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """Says which files are missing, and returns the pairs of which none is."""
    dataset = job.dataset
    for i, what in enumerate(('pictures', 'masks')):
        missing = missing_of([pair[i] for pair in pairs if pair[i]])
        if not missing:
            continue
        if what == 'pictures':
            way = f'{dataset.ann_file} lists them, without img_suffix={dataset.img_suffix!r}'
            way = way if dataset.ann_file else 'replace them'
        else:
            way = f'a mask is named as its picture, with seg_map_suffix={dataset.seg_map_suffix!r} '
            way += f'for img_suffix={dataset.img_suffix!r}; {other_mask(dataset, missing[0])}'
        job.report.errors.append(
            f'{job.where}: {len(missing):,} of {len(pairs):,} {what} are missing or empty, '
            f'{some(missing, 3)}: {way}.'
        )
        lost = set(missing)
        pairs = [pair for pair in pairs if pair[i] not in lost]
    return pairs


def other_mask(dataset: BaseSegDataset, mask: str) -> str:
    """Looks for a mask with another suffix."""
    folder, name = os.path.split(mask)
    stem = name.removesuffix(dataset.seg_map_suffix)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else ()
    for other in names:
        if other.startswith(stem) and not other.endswith(dataset.img_suffix):
            return f'{other} is there: set seg_map_suffix={other.removeprefix(stem)!r}'
    return 'add the masks or take these pictures away'


def check_files(job: Job, pairs: list[tuple[str, str | None]], every: bool) -> None:
    """Reads pictures and masks as the pipeline does, and judges what is in them."""
    load_picture = picture_loader(job.steps)
    for name, there in (('LoadImageFromFile', load_picture), ('LoadAnnotations', job.load_mask)):
        if not there and (name, job.split) != ('LoadAnnotations', 'test'):
            job.report.notes.append(f'{job.where}: no {name} in its pipeline: not all is checked.')

    def read(pair: tuple[str, str | None]) -> tuple[tuple[int, int] | None, Mask | None] | str:
        size = mask = None
        for path, load in zip(pair, (load_picture, job.load_mask), strict=True):
            try:
                if load is load_picture is not None:
                    size = (load(dict(img_path=path)) or {}).get('img_shape')
                elif load and path:
                    mask = read_mask(path, load)
            except Exception:
                return f'{path}: {trouble_of(path)}'
        return size, mask

    chosen = spread(pairs, every)
    found = list(look_at(chosen, read, every, job.report))
    troubles = [look for look in found if isinstance(look, str)]
    if troubles:
        job.report.errors.append(
            f'{job.where}: {len(troubles):,} of {len(found):,} pictures or masks read cannot be: '
            f'{some(troubles, 3)}; replace them.'
        )
    looks = [
        (pair[0], *look)
        for pair, look in zip(chosen, found, strict=False)
        if not isinstance(look, str)
    ]
    sizes = [size for _, size, _ in looks if size]
    found = {'folder': job.dataset.data_prefix['img_path'], 'pictures': len(pairs)}
    job.report.count('Data', job.split, found | size_rows(sizes))
    masks = [mask for _, _, mask in looks if mask]
    if masks and flat(job, masks) and reduce_agrees(job):
        check_sizes(job, looks)
        check_values(job, masks, [path for _, path in pairs])
        show(job, masks)


def read_mask(path: str, load: ConfigDict) -> Mask:
    """Reads a mask as LoadAnnotations does, but for the values."""
    with open(path, 'rb') as file:
        content = file.read()
    backend = load.get('imdecode_backend', 'pillow')
    pixels = mmcv.imfrombytes(content, flag='unchanged', backend=backend).squeeze()
    gray = pixels.ndim == 3 and bool((pixels == pixels[..., :1]).all())
    if pixels.dtype == np.uint8:
        counts = np.bincount(pixels.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(pixels.astype(np.int64), return_counts=True)
    counted = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return Mask(path, pixels.shape, counted, gray)


def flat(job: Job, masks: list[Mask]) -> bool:
    deep = [mask for mask in masks if len(mask.shape) != 2]
    if deep:
        way = 'colours are no labels, save the number of the class of each pixel'
        if all(mask.gray for mask in deep):
            way = 'as the channels are equal, save one of them'
        job.texts.append(
            f'{job.where}: {len(deep):,} of {len(masks):,} masks read have the shape '
            f'{deep[0].shape} of RGB pictures instead of one channel; {way} (gray or palette '
            f'PNG): {some([mask.path for mask in deep], 3)}.'
        )
    return not deep


def reduce_agrees(job: Job) -> bool:
    other = job.load_mask.get('reduce_zero_label')
    if other not in (None, job.reduce):
        job.report.errors.append(
            f'{job.where}: reduce_zero_label={job.reduce} in the dataset, but {other} in '
            'LoadAnnotations of its pipeline; give both the same, True where 0 in a mask is no '
            'class, False where it is the first one.'
        )
    return other in (None, job.reduce)


def check_sizes(job: Job, looks: list[tuple]) -> None:
    other = [(p, size, mask) for p, size, mask in looks if mask and size not in (None, mask.shape)]
    if other:
        path, (height, width), mask = other[0]
        # Resize brings a smaller mask to the picture's size, but in training alone.
        resized = job.split == 'train' and any('Resize' in kind(step) for step in job.steps)
        same = all(s[0] * m.shape[1] == s[1] * m.shape[0] for _, s, m in other)
        turned = ' turned by its EXIF' if mask.shape == (width, height) else ''
        (job.report.notes if resized and same else job.texts).append(
            f'{job.where}: {len(other):,} of {len(looks):,} masks read have another size than '
            f'their picture, {mask.path} {mask.shape[1]}x{mask.shape[0]}, {path} '
            f'{width}x{height}{turned}; make both the same, without interpolating the mask.'
        )


def check_values(job: Job, masks: list[Mask], paths: list[str]) -> None:
    """Judges the values in masks by the classes."""
    ignored, n = job.ignored(), len(job.classes or ())
    values = set().union(*(mask.values for mask in masks))
    found = f'values found: {some(sorted(values), 12)}'
    if not n or ignored is None:
        job.report.notes.append(f'{job.where}: {found}; what they should be is not known.')
        return
    first = int(job.reduce)
    beyond = sorted(
        value
        for value in values
        if (label := job.label(value)) != ignored and not (-1 <= value < 256 and label < n)
    )
    if not beyond:
        check_used(job, masks, paths, found)
        return
    way = 'correct the masks, or name all classes in metainfo.classes'
    if len(beyond) > 20:
        way = 'so many come from lossy or interpolated masks, make them anew'
    elif beyond == [n] and not job.reduce:
        way = 'set reduce_zero_label=True if 0 is no class, or name the class that is missing'
    example = next(mask.path for mask in masks if beyond[0] in mask.values)
    job.texts.append(
        f'{job.where}: the value {some(beyond, 8)} in masks ({example}) is none of the {n} '
        f'classes, which are {first} to {first + n - 1} as reduce_zero_label={job.reduce}, nor '
        f'ignored as {ignored} is, {found}; {way}.'
    )


def check_used(job: Job, masks: list[Mask], paths: list[str], found: str) -> None:
    """Judges which classes have pixels at all."""
    classes, last, read = job.classes, len(job.classes) - 1, {mask.path for mask in masks}
    values = Counter(value for mask in masks for value in mask.values)
    used = {job.label(value) for value in values} - {job.ignored()}
    zero_dropped = job.reduce and values[0]
    own = not (type(job.dataset).METAINFO and type(job.dataset).__module__.startswith('mmseg.'))
    named = classes[0].strip('_ ').lower() in NO_CLASS
    suspicious = zero_dropped and own and named and last not in used
    if len(used) < 2 or suspicious:
        # Rare classes may be missing in a sample: nobody is refused before all masks were read.
        rest = [path for path in paths if path not in read]
        for mask in look_at(rest, partial(read_mask, load=job.load_mask), True, job.report):
            used |= {job.label(value) for value in mask.values} - {job.ignored()}
            if last in used and len(used) > 1:
                break
    if suspicious and last not in used:
        job.texts.append(
            f'{job.where}: reduce_zero_label=True drops 0, which seems to be the first class, '
            f'{classes[0]!r} ({found}), so that each class gets the name of the one before; set '
            'reduce_zero_label=False in the dataset and in LoadAnnotations.'
        )
    elif len(used) < 2:
        only = f'only {classes[min(used)]!r} has pixels' if used else 'no class has pixels'
        drops = ' and 0 too, as reduce_zero_label=True' if job.reduce else ''
        way = f'give the classes the values {int(job.reduce)} to {int(job.reduce) + last}'
        way += ', or set reduce_zero_label=False if 0 is one' if zero_dropped else ''
        (job.texts if job.split == 'train' else job.report.notes).append(
            f'{job.where}: {only} ({found}; {job.ignored()} is ignored{drops}), so that there is '
            f'nothing to learn; {way}.'
        )
    elif len(masks) == len(paths) and (unused := set(range(len(classes))) - used):
        unused = [classes[i] for i in sorted(unused)]
        job.report.notes.append(
            f'{job.where}: {len(unused)} of {len(classes)} classes have no pixel in any '
            f'mask: {some(unused)}.'
        )


def show(job: Job, masks: list[Mask]) -> None:
    """Adds the share of each class."""
    pixels = Counter()
    for mask in masks:
        for value, count in mask.values.items():
            pixels[job.label(value)] += count
    names = {job.ignored(): 'ignored', **dict(enumerate(job.classes or ()))}
    shares = {
        str(names.get(label, label)): f'{100 * count / pixels.total():.1f} %'
        for label, count in pixels.most_common()
    }
    job.report.count('Pixels of the masks read', job.split, shares)
