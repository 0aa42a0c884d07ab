"""What can be wrong with the data of a detector, in COCO's format."""

import gc
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, METRICS, TRANSFORMS, Registry
from PIL import Image

from mmhatnet.preflight import inner_datasets
from mmhatnet.preflight.report import Job as AnyJob
from mmhatnet.preflight.report import Report

# How many pictures of each data set are decoded, unless all are asked for.
SAMPLE = 1000
HEADS = ('bbox_head', 'mask_head', 'mask_iou_head', 'panoptic_head', 'query_head')
EXIF_ORIENTATION = 0x0112
FIELDS = dict(
    images=('id', 'file_name', 'width', 'height'),
    categories=('id', 'name'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
)
FILL_IN = dict(
    area=': export them again with areas, or fill in width * height of each box',
    iscrowd=': export them again, or fill in 0',
)


@dataclass
class CocoFile:
    """An annotation file, as pycocotools reads it."""

    path: str
    images: list[dict]
    annotations: list[dict]
    categories: list[dict]


class Job(AnyJob):
    """One data set of a detector, and what it is for."""

    @property
    def classes(self) -> list[str]:
        return list(self.dataset.metainfo['classes'])

    @property
    def transforms(self) -> list[ConfigDict]:
        return list(_dicts(self.settings.get('pipeline', [])))

    def metrics(self) -> Iterator[tuple[str, ConfigDict]]:
        """Yields the settings of those evaluators of this split that compare with annotations."""
        settings = self.cfg.get(f'{self.split}_evaluator') if self.split != 'train' else None
        for i, metric in enumerate(settings if isinstance(settings, Sequence) else [settings]):
            kind = _class(METRICS, metric) if isinstance(metric, dict) else None
            if kind is not None and issubclass(kind, CocoMetric):
                if not metric.get('format_only'):
                    index = f'[{i}]' if isinstance(settings, Sequence) else ''
                    yield f'{self.split}_evaluator{index}', metric

    def judges(self, metric: str) -> bool:
        """Whether an evaluator of this split has this metric, such as 'segm'."""
        return any(metric in m.get('metric', 'bbox') for _, m in self.metrics())


def check_detection(job: AnyJob) -> None:
    """Looks at one data set of a detector."""
    job = Job(**vars(job))
    dataset, report, every = job.dataset, job.report, job.every
    if not _reads_coco(dataset):
        report.notes.append(
            f'{job.where}: the data are not checked, as {type(dataset).__name__} reads annotations '
            'in a way of its own.'
        )
        return
    if isinstance(dataset.metainfo['classes'], str):
        name = dataset.metainfo['classes']
        report.errors.append(
            f'{job.where}.metainfo: classes is the string {name!r}, of which each letter would be '
            f'a class: a tuple of one name needs a comma, classes=({name!r},).'
        )
        return
    if not _is_local(dataset.ann_file, dataset.backend_args):
        report.notes.append(f'{dataset.ann_file} is not on a disk of this machine: not checked.')
        return
    try:
        file = read_coco(dataset.ann_file, report)
    except ValueError as error:
        report.errors.append(
            f'{job.where}: {error}: name one in COCO format with ann_file, which is relative to '
            f'data_root ({dataset.data_root!r}).'
        )
        return
    # What one of these finds would make the next ones complain about its consequences.
    for check in (_check_fields, _check_ids):
        report.errors += (errors := list(check(job, file)))
        if errors:
            return
    report.errors += (errors := list(_check_names(job, file)))
    if not errors:
        report.errors += [*_check_heads(job), *_check_split_agrees(job)]
        _check_evaluators(job, file)
    objects = Objects(job, file)
    if objects.used.any() or job.split != 'train':
        _check_boxes(job, file, objects)
        report.errors += _check_masks(job, file, objects)
    pictures = objects.pictures_read()
    if not errors:
        report.errors += _check_something_is_left(job, file, objects, pictures)
    read = _check_pictures(job, [file.images[i] for i in pictures], every)
    _count(job, file, objects, pictures, read)


def _reads_coco(dataset: BaseDataset) -> bool:
    return isinstance(dataset, CocoDataset) and all(
        getattr(type(dataset), name) is getattr(CocoDataset, name)
        for name in ('load_data_list', 'parse_data_info')
    )


def _class(registry: Registry, settings: ConfigDict) -> type | None:
    with registry.switch_scope_and_registry(None) as scoped:
        kind = settings.get('type')
        kind = scoped.get(kind) if isinstance(kind, str) else kind
    return kind if isinstance(kind, type) else None


def _is_local(path: str, backend: dict | None) -> bool:
    return '://' not in path and (backend or {}).get('backend', 'local') == 'local'


def _dicts(settings) -> Iterator[ConfigDict]:
    """Yields all dicts in a part of a config, outer ones first."""
    if isinstance(settings, dict):
        yield settings
        settings = settings.values()
    elif not isinstance(settings, (list, tuple)):
        return
    for value in settings:
        yield from _dicts(value)


def _some(values: Iterable, limit: int = 5) -> str:
    values = [str(value) for value in values]
    more = f' and {len(values) - limit:,} more' if len(values) > limit else ''
    return ', '.join(values[:limit]) + more


def read_coco(path: str, report: Report) -> CocoFile:
    """Reads an annotation file as pycocotools does.

    Raises:
        ValueError: If it is missing or not in COCO's format.
    """
    if not os.path.isfile(path):
        raise ValueError(f'there is no annotation file {path!r}')
    collects = gc.isenabled()
    # Millions of new objects would be searched for garbage over and over.
    gc.disable()
    try:
        with report.busy(f'Reading {path}'), open(path) as file:
            content = json.load(file)
    except ValueError as error:
        raise ValueError(f'{path} is not JSON ({error})') from None
    finally:
        if collects:
            gc.enable()
    needed = ('images', 'categories')
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in needed):
        raise ValueError(
            f'{path} is not in COCO format, a dict with lists "images", "annotations" and '
            '"categories"'
        )
    return CocoFile(path, **{name: content.get(name) or [] for name in FIELDS})


def _check_fields(job: Job, file: CocoFile) -> Iterator[str]:
    for name, fields in FIELDS.items():
        entries = getattr(file, name)
        if not all(isinstance(entry, dict) for entry in entries):
            yield f'{file.path}: "{name}" is not a list of dicts: export it again in COCO format.'
            return
        for field in fields:
            yield from _lacking(file, name, field, (e for e in entries if field not in e))
            kinds = (str,) if field in ('file_name', 'name') else (int, float, str, type(None))
            if field.endswith(('id', 'name')) and (
                bad := [e for e in entries if not isinstance(e.get(field, ''), kinds)]
            ):
                yield (
                    f'{file.path}: "{field}" of {len(bad):,} {name} is of a wrong type, as '
                    f'{json.dumps(bad[0][field])}: export it again in COCO format.'
                )
    for name, field, size in (
        ('images', 'width', ()),
        ('images', 'height', ()),
        ('annotations', 'area', ()),
        ('annotations', 'bbox', (4,)),
    ):
        values = [entry[field] for entry in getattr(file, name) if field in entry]
        if not _are_numbers(values, size):
            bad = [e for e in getattr(file, name) if not _are_numbers([e.get(field)], size)]
            wanted = 'four numbers' if size else 'a number'
            yield (
                f'{file.path}: "{field}" of {len(bad):,} {name} is not {wanted}, as '
                f'{json.dumps(bad[0].get(field))} of id {bad[0].get("id")}: export it again.'
            )


def _lacking(file: CocoFile, name: str, field: str, entries: Iterable[dict]) -> Iterator[str]:
    if ids := [entry.get('id') for entry in entries]:
        total = len(getattr(file, name))
        yield (
            f'{file.path}: {len(ids):,} of {total:,} {name} (ids {_some(ids)}) lack "{field}", '
            f'which MMDetection needs{FILL_IN.get(field, ": export it again in COCO format")}.'
        )


def _are_numbers(values: list, size: tuple) -> bool:
    try:
        return not values or (
            (array := np.array(values)).shape[1:] == size and array.dtype.kind in 'iuf'
        )
    except ValueError:  # of different lengths
        return False


def _check_ids(job: Job, file: CocoFile) -> Iterator[str]:
    for name in FIELDS:
        seen = Counter(entry['id'] for entry in getattr(file, name))
        if twice := [i for i, number in seen.items() if number > 1]:
            yield (
                f'{file.path}: ids of "{name}" occur more than once ({_some(twice)}), '
                'of which MMDetection keeps one: number them anew.'
            )
    for field, name in (('image_id', 'images'), ('category_id', 'categories')):
        known = {entry['id'] for entry in getattr(file, name)}
        unknown = {a[field] for a in file.annotations} - known
        twins = {str(i) for i in known} & {str(i) for i in unknown}
        if twins:
            other = next(i for i in unknown if str(i) in twins)
            yield (
                f'{file.path}: "{field}" of annotations is {json.dumps(other)}, while the id in '
                f'"{name}" is {next(json.dumps(i) for i in known if str(i) == str(other))}, and '
                'MMDetection finds no object that way: write both as numbers.'
            )
        elif unknown:
            number = sum(a[field] in unknown for a in file.annotations)
            job.report.notes.append(
                f'{file.path}: {number:,} of {len(file.annotations):,} annotations are left out, '
                f'as "{name}" has no id {_some(sorted(unknown, key=str))}.'
            )


def _check_names(job: Job, file: CocoFile) -> Iterator[str]:
    classes = job.classes
    names = [category['name'] for category in file.categories]
    objects = Counter(a['category_id'] for a in file.annotations)
    # MMDetection numbers classes in the order of the file, whatever that of the config is.
    numbered = [name for name in names if name in classes]
    missing = [name for name in classes if name not in names]
    left_out = [name for name in names if name not in classes]
    setting = f'{job.where}.metainfo'
    source = f'that {setting} names'
    if 'classes' not in (job.settings.get('metainfo') or {}):
        source = f'of {type(job.dataset).__name__}, which hold where no {setting} has classes'
    # Some tools write a category above the others that no object belongs to.
    wanted = [c['name'] for c in file.categories if c['id'] in objects or c['name'] in classes]
    wanted = f'set {setting}=dict(classes=({_some(map(repr, wanted or names), 20)},))'
    if not numbered:
        yield (
            f'{file.path}: the categories ({_some(names)}) are none of the classes '
            f'({_some(classes)}) {source}: {wanted}.'
        )
    # A file may know fewer classes than the config, as long as those that it knows come first.
    elif missing and (job.split != 'train' or left_out or numbered != classes[: len(numbered)]):
        near = get_close_matches(missing[0], left_out, 1)
        guess = f' (did you mean {near[0]!r}?)' if near else ''
        rest = f', and has {_some(left_out)}, which the config leaves out' if left_out else ''
        yield (
            f'{file.path} lacks classes {source}: {_some(missing)}{guess}{rest}; others would get '
            f'their names: {wanted}, or add the missing categories to the file.'
        )
    elif len(set(numbered)) < len(numbered):
        twice = [name for name, number in Counter(numbered).items() if number > 1]
        yield (
            f'{file.path}: categories of the same name ({_some(twice)}) would become different '
            'classes, and those after them get wrong names: merge them, or rename one.'
        )
    elif len(set(classes)) < len(classes):
        yield f'{setting}: classes has a name twice ({_some(classes)}): remove one.'
    elif numbered != classes[: len(numbered)]:
        yield (
            f'{setting}: classes are numbered in the order of {file.path} ({_some(numbered)}), not '
            f'in that of the config ({_some(classes)}), so that their names would be swapped: set '
            f'classes=({_some(map(repr, numbered), 20)},).'
        )
    else:
        if missing:
            job.report.notes.append(f'{file.path} lacks classes {source}: {_some(missing)}.')
        if left_out:
            ids = {c['id'] for c in file.categories if c['name'] in left_out}
            job.report.notes.append(
                f'{file.path}: the config leaves out {len(left_out)} of {len(names)} categories '
                f'({_some(left_out)}), with {sum(objects[i] for i in ids):,} objects.'
            )


def _heads(model, path: str = 'model') -> Iterator[tuple[str, dict]]:
    """Yields the heads of a model that have classes, with their place in the config."""
    if isinstance(model, (list, tuple)):
        model = {f'[{i}]': part for i, part in enumerate(model)}
    if not isinstance(model, dict):
        return
    for key, part in model.items():
        place = path + key if key.startswith('[') else f'{path}.{key}'
        if key in HEADS:
            parts = {'': part} if isinstance(part, dict) else dict(enumerate(part or []))
            yield from ((place + (f'[{i}]' if i != '' else ''), h) for i, h in parts.items())
        yield from _heads(part, place)


def _check_heads(job: Job) -> Iterator[str]:
    wanted = len(job.classes)
    for path, head in _heads(job.cfg.model):
        setting, number = 'num_classes', head.get('num_classes')
        if 'num_things_classes' in head:
            setting = 'num_things_classes'
            number = head.num_things_classes + head.get('num_stuff_classes', 0)
            weight = (head.get('loss_cls') or {}).get('class_weight')
            if isinstance(weight, Sequence) and len(weight) != number + 1:
                yield (
                    f'{path}.loss_cls.class_weight has {len(weight)} numbers, and {number} classes '
                    f'need {number + 1}, the last for what is no object: set '
                    f'[1.0] * {wanted} + [0.1].'
                )
        if number is None or head.get('class_agnostic'):
            continue
        if number < wanted:
            yield (
                f'{path}.{setting} is {number}, and the data have {wanted} classes '
                f'({_some(job.classes)}): set it to {wanted}.'
            )
        elif number > wanted:
            job.report.notes.append(
                f'{path}.{setting} is {number}, and the data have {wanted} classes: the others '
                'have no examples.'
            )


def _check_split_agrees(job: Job) -> Iterator[str]:
    """Compares the classes with those of the training data, which number the model's outputs."""
    settings = (job.cfg.get('train_dataloader') or {}).get('dataset')
    train = next(inner_datasets(settings), None)
    if job.split == 'train' or train is None:
        return
    try:
        metainfo = _class(DATASETS, train)._load_metainfo(train.get('metainfo'))
    except Exception:  # another kind of data set, which its own check speaks of
        return
    if metainfo.get('classes') and list(metainfo['classes']) != job.classes:
        text = (
            f'{job.where}: the classes ({_some(job.classes)}) are not those of train_dataloader '
            f'({_some(metainfo["classes"])}), which number the outputs of the model: set the same '
            'metainfo in both.'
        )
        # A test may be of a model that was trained with another config.
        if job.split == 'val':
            yield text
        else:
            job.report.notes.append(text)


def _check_evaluators(job: Job, file: CocoFile) -> None:
    for where, metric in job.metrics():
        path = metric.get('ann_file')
        if path is None:
            packs = [t for t in job.transforms if str(t.get('type')).endswith('PackDetInputs')]
            if packs and not any('instances' in pack.get('meta_keys', ()) for pack in packs):
                job.report.errors.append(
                    f'{where} has no ann_file: set it to {file.path}, which {job.where} reads.'
                )
            continue
        if not _is_local(path, metric.get('backend_args')):
            continue
        answers = file
        if not _same_file(path, file.path):
            try:
                answers = read_coco(path, job.report)
                if found := [*_check_fields(job, answers), *_check_ids(job, answers)]:
                    raise ValueError(found[0].rstrip('.'))
                _compare_answers(job, file, answers, where)
            except ValueError as error:
                job.report.errors.append(
                    f'{where}.ann_file: {error}: set it to {file.path}, which {job.where} reads.'
                )
                continue
        job.report.errors += _check_answers(job, answers, metric)


def _compare_answers(job: Job, file: CocoFile, answers: CocoFile, where: str) -> None:
    """Compares what an evaluator reads with what its data set reads.

    Raises:
        ValueError: If these are not the answers for the pictures.
    """

    def pictures(file: CocoFile) -> set:
        return {(image['id'], image['file_name']) for image in file.images}

    def numbered(file: CocoFile) -> list:
        return [(c['id'], c['name']) for c in file.categories if c['name'] in job.classes]

    def boxes(file: CocoFile) -> list:
        return sorted(
            (str(a['image_id']), str(a['category_id']), a['bbox']) for a in file.annotations
        )

    inner = list(inner_datasets(job.cfg[f'{job.split}_dataloader'].dataset))
    if len(inner) > 1:
        job.report.notes.append(
            f'{where} reads {answers.path} for several data sets: not compared.'
        )
        return
    common = len(pictures(answers) & pictures(file))
    if not common == len(answers.images) == len(file.images):
        raise ValueError(
            f'{answers.path} has {len(answers.images):,} pictures, of which {common:,} are among '
            f'the {len(file.images):,} that are read'
        )
    if numbered(answers) != numbered(file):
        raise ValueError(f'the categories of {answers.path} have other ids or another order')
    if boxes(answers) == boxes(file):
        return
    for settings in inner_datasets((job.cfg.get('train_dataloader') or {}).get('dataset')):
        train = os.path.join(settings.get('data_root') or '', settings.get('ann_file') or '')
        if _same_file(answers.path, train):
            raise ValueError(f'{answers.path} holds the training data')
    job.report.notes.append(
        f'{where}.ann_file is {answers.path}, with other annotations than {file.path}, which '
        f'{job.where} reads.'
    )


def _same_file(path: str, other: str) -> bool:
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def _check_answers(job: Job, file: CocoFile, metric: ConfigDict) -> Iterator[str]:
    """Checks what pycocotools needs of the annotations that it compares with."""
    ids = {c['id'] for c in file.categories if c['name'] in job.classes}
    answers = [a for a in file.annotations if a['category_id'] in ids]
    yield from _lacking(
        file,
        'annotations',
        'iscrowd',
        (a for a in answers if not isinstance(a.get('iscrowd'), int)),
    )
    if any(a['id'] == 0 for a in answers):
        yield (
            f'{file.path}: there is an annotation with id 0, which pycocotools takes for no match, '
            'so that AP would be too low: number annotations from 1.'
        )
    if not all(isinstance(a['id'], (int, float)) or _is_digits(a['id']) for a in answers):
        yield f'{file.path}: ids of annotations are not numbers: number them from 1.'
    if not answers:
        job.report.notes.append(
            f'{file.path} has no objects of the classes to compare with: AP will be -1.'
        )
    elif job.dataset._indices is not None:
        job.report.notes.append(
            f'{job.where}: indices={job.dataset._indices} leaves out pictures whose objects the '
            'evaluator counts as missed, so that AP will be too low.'
        )


def _is_digits(value) -> bool:
    return isinstance(value, str) and value.isdigit()


class Objects:
    """The annotations of a file in arrays, and what MMDetection makes of them."""

    def __init__(self, job: Job, file: CocoFile) -> None:
        def array(entries: list[dict], field: str) -> np.ndarray:
            return np.array([entry[field] for entry in entries], float)

        def flags(field: str) -> np.ndarray:
            return np.array([bool(a.get(field)) for a in file.annotations], bool)

        self.dataset = job.dataset
        labels = {c['id']: job.classes.index(c['name']) for c in file.categories
                  if c['name'] in job.classes}  # fmt: skip
        images = {image['id']: i for i, image in enumerate(file.images)}
        self.width = array(file.images, 'width')
        self.height = array(file.images, 'height')
        self.image = np.array([images.get(a['image_id'], -1) for a in file.annotations], int)
        self.label = np.array([labels.get(a['category_id'], -1) for a in file.annotations], int)
        self.box = np.array([a['bbox'] for a in file.annotations], float).reshape(-1, 4)
        self.crowd = flags('iscrowd')
        # The same tests as those of CocoDataset.parse_data_info.
        x, y, w, h = self.box.T
        self.named = (self.label >= 0) & (self.image >= 0) & ~flags('ignore')
        right, bottom = np.minimum(x + w, self.limits[0]), np.minimum(y + h, self.limits[1])
        inside = (right - np.maximum(x, 0) > 0) & (bottom - np.maximum(y, 0) > 0)
        self.used = (
            self.named & inside & (array(file.annotations, 'area') > 0) & (w >= 1) & (h >= 1)
        )

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Width and height of each object's picture."""
        if not len(self.width):
            return self.image, self.image
        return self.width[self.image], self.height[self.image]

    def pictures_read(self) -> np.ndarray:
        """The indices of the pictures that CocoDataset.filter_data and `indices` leave."""
        kept = np.ones(len(self.width), bool)
        settings = self.dataset.filter_cfg
        if settings and not self.dataset.test_mode:
            kept = np.minimum(self.width, self.height) >= settings.get('min_size', 0)
            if settings.get('filter_empty_gt', False):
                kept &= np.isin(np.arange(len(kept)), self.image[self.label >= 0])
        pictures, indices = np.flatnonzero(kept), self.dataset._indices
        if indices is None:
            return pictures
        if isinstance(indices, int):
            return pictures[:indices] if indices >= 0 else pictures[indices:]
        return pictures[[i for i in indices if i < len(pictures)]]


def _ids(file: CocoFile, mask: np.ndarray) -> str:
    return f'annotation ids {_some(file.annotations[i]["id"] for i in np.flatnonzero(mask))}'


def _check_boxes(job: Job, file: CocoFile, objects: Objects) -> None:
    total = int(objects.named.sum())
    lost = objects.named & ~objects.used
    if lost.any():
        judged = ' and count as missed' if any(job.metrics()) else ''
        job.report.notes.append(
            f'{file.path}: {lost.sum():,} of {total:,} objects are left out{judged}, as their '
            'box is outside of the picture, thinner than a pixel or not a number, or their area '
            f'is 0 ({_ids(file, lost)}).'
        )
    width, height = objects.limits
    x, y, w, h = objects.box.T
    beyond = objects.used & ((x < -1) | (y < -1) | (x + w > width + 1) | (y + h > height + 1))
    if beyond.any():
        job.report.notes.append(
            f'{file.path}: {beyond.sum():,} of {total:,} boxes reach out of their picture '
            f'({_ids(file, beyond)}): a box is x, y, width and height, not two corners.'
        )


def _check_something_is_left(
    job: Job, file: CocoFile, objects: Objects, pictures: np.ndarray
) -> Iterator[str]:
    if not file.images:
        yield f'{file.path} has no pictures: its "images" is empty.'
    elif job.split == 'train' and (sizes := objects.width <= 0).any():
        ids = [file.images[i]['id'] for i in np.flatnonzero(sizes)]
        yield (
            f'{file.path}: the width of {len(ids):,} of {len(file.images):,} pictures (ids '
            f'{_some(ids)}) is {int(objects.width[sizes][0])}, so that their objects are left '
            'out: write the sizes of the pictures into the file.'
        )
    elif job.split == 'train' and objects.named.any() and not objects.used.any():
        reason = 'is outside of its picture, thinner than a pixel, not a number, or of area 0'
        if (objects.box[objects.named] <= 1).all():
            reason = 'is given in fractions of the picture, not in pixels'
        yield (
            f'{file.path}: none of {objects.named.sum():,} objects can be used, as each box '
            f'{reason}.'
        )
    elif not len(pictures):
        yield (
            f'{file.path}: none of {len(file.images):,} pictures is left by {job.where}.filter_cfg='
            f'{dict(job.dataset.filter_cfg or {})} and indices={job.dataset._indices}; '
            f'{int(objects.named.sum()):,} of {len(file.annotations):,} annotations are of the '
            'classes.'
        )


def _mask_fault(mask, width: int, height: int) -> str | None:
    if not mask:
        return 'no mask'
    if isinstance(mask, list):
        if not all(isinstance(polygon, list) for polygon in mask):
            return 'a mask that is not a list of polygons'
        if not any(len(p) >= 6 and len(p) % 2 == 0 for p in mask):
            return 'no polygon of three points or more'
        return None
    counts = mask.get('counts') if isinstance(mask, dict) else None
    if not isinstance(counts, (list, str)) or not isinstance(mask.get('size'), list):
        return 'a mask that is neither polygons nor RLE'
    if mask['size'] != [height, width]:
        return 'an RLE mask of another size than [height, width] of its picture'
    if isinstance(counts, list) and sum(counts) != height * width:
        return 'an RLE mask whose counts are not those of its picture'
    return None


def _check_masks(job: Job, file: CocoFile, objects: Objects) -> Iterator[str]:
    loaded = any(t.get('with_mask') for t in job.transforms)
    judged = job.judges('segm')
    if not loaded and not judged:
        return
    faults = {}
    for i in np.flatnonzero(objects.named if judged else objects.used):
        annotation, image = file.annotations[i], file.images[objects.image[i]]
        fault = _mask_fault(annotation.get('segmentation'), image['width'], image['height'])
        if fault:
            faults.setdefault(fault, []).append(annotation['id'])
    for fault, ids in faults.items():
        text = (
            f'{file.path}: {len(ids):,} of {int(objects.named.sum()):,} objects (annotation ids '
            f'{_some(ids)}) have {fault}'
        )
        if fault.startswith('no polygon') and not judged:
            job.report.notes.append(f'{text}: training takes no notice of them.')
        else:
            what = f'the metric segm of {job.split}_evaluator' if judged else 'the model'
            yield (
                f'{text}, which {what} needs: give them polygons, remove them, or train a '
                'detector of boxes, such as configs/retinanet_hatnet.py.'
            )


def _check_pictures(job: Job, images: list[dict], every: bool) -> int:
    """Checks that pictures exist, can be decoded, and have the sizes that the file says.

    Returns:
        int: How many were decoded.
    """
    report = job.report
    folder = job.dataset.data_prefix.get('img')
    loader = next((t for t in job.transforms if 'LoadImageFromFile' in str(t.get('type'))), None)
    if folder is None:
        report.errors.append(
            f'{job.where}.data_prefix is {job.dataset.data_prefix}, without the folder of the '
            'pictures: set data_prefix=dict(img=FOLDER).'
        )
        return 0
    if loader is None or not _is_local(folder, loader.get('backend_args')):
        report.notes.append(f'{job.where}: pictures are not checked, as they are not plain files.')
        return 0
    if folder and not os.path.isdir(folder):
        report.errors.append(
            f'{job.where}: there is no folder {folder!r}; name the folder of the pictures with '
            'data_prefix=dict(img=FOLDER), which is relative to data_root.'
        )
        return 0
    paths = [os.path.join(folder, image['file_name']) for image in images]
    if missing := _missing_files(paths):
        text = (
            f'{job.dataset.ann_file}: {len(missing):,} of {len(paths):,} pictures are not there, '
            f'such as {missing[0]}{_where_else(job, missing[0])}.'
        )
        own_filter = type(job.dataset).filter_data is not CocoDataset.filter_data
        (report.notes if own_filter else report.errors).append(text)
        if len(missing) == len(paths):
            return 0
    absent = set(missing)
    there = [(path, image) for path, image in zip(paths, images) if path not in absent]
    step = 1 if every else max(1, len(there) / SAMPLE)
    sample = [there[int(i)] for i in np.arange(0, len(there), step)]
    try:
        load = TRANSFORMS.build(loader)
    except Exception as error:  # what a later step says better
        report.notes.append(f'{job.where}: pictures are not read, as {loader.type} says: {error}')
        return 0
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        sizes = threads.map(lambda entry: _loaded_size(load, entry[0]), sample)
        sizes = list(report.track(sizes, len(sample), f'Reading pictures of {job.split}'))
    _check_sizes(job, sample, sizes)
    return len(sample)


def _missing_files(paths: list[str]) -> list[str]:
    """Those of many files that do not exist: listing folders is faster than asking for each."""
    there = {}
    for folder in {os.path.dirname(path) for path in paths}:
        there[folder] = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
    absent = [p for p in paths if os.path.basename(p) not in there[os.path.dirname(p)]]
    # Some file systems know a file by other spellings as well.
    return [path for path in absent if not os.path.isfile(path)]


def _where_else(job: Job, path: str) -> str:
    """Guesses where a picture is that is not where the config says."""
    root, folder = job.dataset.data_root or '', job.dataset.data_prefix['img']
    name = os.path.relpath(path, folder or '.')
    if os.path.isfile(os.path.join(root, name)):
        return f', but {os.path.join(root, name)} is: set data_prefix=dict(img="")'
    base = name.replace('\\', '/').split('/')[-1]
    if base != name and os.path.isfile(os.path.join(folder, base)):
        return f', but {os.path.join(folder, base)} is: write file_name without folders'
    return ': copy them there, or remove them from the file'


def _loaded_size(load: Callable, path: str) -> tuple[int, int] | str | None:
    """Width and height of a picture as the pipeline sees it, or why it sees none."""
    try:
        result = load(dict(img_path=path))
    except Exception:  # each image library has errors of its own
        if not os.path.getsize(path):
            return 'is empty'
        try:
            with Image.open(path):
                return 'is damaged or cut off'
        except Exception:
            return 'is not a picture'
    return result and result['ori_shape'][1::-1]


def _check_sizes(job: Job, sample: list[tuple[str, dict]], sizes: list) -> None:
    errors, notes = job.report.errors, job.report.notes
    bad = [(path, why) for (path, _), why in zip(sample, sizes) if isinstance(why, str)]
    if bad:
        errors.append(
            f'{len(bad):,} of {len(sample):,} pictures that were read cannot be loaded: '
            f'{_some(f"{path} {why}" for path, why in bad)}; replace them, or remove them from '
            f'{job.dataset.ann_file}.'
        )
    other, turned = {}, []
    for (path, image), size in zip(sample, sizes):
        wanted = (image['width'], image['height'])
        if not isinstance(size, tuple) or min(wanted) <= 0:
            continue
        off = max(abs(a - b) for a, b in zip(size, wanted))
        orientation = _orientation(path) if path.lower().endswith(('jpg', 'jpeg')) else 1
        if off:
            kind = 'turned' if size == wanted[::-1] and orientation >= 5 else 'other'
            if off <= 1 and not job.judges('segm'):
                kind = 'slight'
            other.setdefault(kind, []).append((path, size, wanted))
        elif orientation in (2, 3, 4) or (orientation > 4 and size[0] == size[1]):
            turned.append(path)
    for kind, found in other.items():
        path, (w, h), (wanted_w, wanted_h) = found[0]
        text = (
            f'{job.dataset.ann_file}: {len(found):,} of {len(sample):,} pictures that were read '
            f'have another size than the file says, such as {path}, which is {w} x {h} instead of '
            f'{wanted_w} x {wanted_h}'
        )
        if kind == 'slight':
            notes.append(f'{text}.')
        elif kind == 'turned':
            errors.append(
                f'{text}, as its EXIF orientation turns it when it is loaded and its annotations '
                'were made without: set color_type="color_ignore_orientation" for '
                'LoadImageFromFile in all pipelines, or annotate the picture as it is shown.'
            )
        else:
            errors.append(
                f'{text}: use the pictures that were annotated, or scale the annotations.'
                if (w, h) != (wanted_h, wanted_w)
                else f'{text}: width and height are swapped in the file, or the picture was turned.'
            )
    if turned and 'ignore_orientation' not in str(job.transforms):
        notes.append(
            f'{len(turned):,} of {len(sample):,} pictures that were read, such as {turned[0]}, are '
            'turned or mirrored by their EXIF orientation when they are loaded: their annotations '
            'must have been made on them as shown.'
        )


def _orientation(path: str) -> int:
    try:
        with Image.open(path) as picture:
            return int(picture.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # broken EXIF data, which loading takes no notice of
        return 1


def _count(job: Job, file: CocoFile, objects: Objects, pictures: np.ndarray, decoded: int) -> None:
    used = objects.used & np.isin(objects.image, pictures)
    areas = (objects.width * objects.height)[pictures]
    by_size = pictures[np.argsort(areas, kind='stable')]
    sizes = [f'{objects.width[i]:.0f} x {objects.height[i]:.0f}' for i in by_size]
    smallest, median, largest = (
        (sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else ('-',) * 3
    )
    empty = len(pictures) - len(np.unique(objects.image[used]))
    facts = {
        'annotation file': file.path,
        'pictures in it': len(file.images),
        'pictures used': len(pictures),
        'of these without objects': empty,
        'of these decoded': decoded,
        'objects': int(used.sum()),
        'of these crowds': int((used & objects.crowd).sum()),
        'smallest picture': smallest,
        'median picture': median,
        'largest picture': largest,
    }
    job.report.count('Data', job.split, facts)
    numbers = np.bincount(objects.label[used], minlength=len(job.classes)).tolist()
    job.report.count('Objects of each class', job.split, dict(zip(job.classes, numbers)))
    named = {category['name'] for category in file.categories}
    lacking = [name for name, n in zip(job.classes, numbers) if n == 0 and name in named]
    if job.split == 'train' and used.any() and lacking:
        job.report.notes.append(f'{file.path} has nothing to train with for {_some(lacking)}.')
