"""Checks of the data of a detector, in COCO format."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cached_property

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric, MultiDatasetsEvaluator
from mmengine.config import ConfigDict
from mmengine.registry import EVALUATOR, METRICS

from mmhatnet.config_walk import class_of, datasets_of, dicts_of, type_name
from mmhatnet.data_checks.coco_file import (
    CocoFile,
    Objects,
    read_coco,
    short,
)
from mmhatnet.data_checks.coco_masks import FAR, NO_MASK, NO_POLYGON, fault_of_mask
from mmhatnet.data_checks.coco_metric import check_answers, check_names, check_room, check_settings
from mmhatnet.data_checks.images import (
    check_number,
    datasets_of_training,
    exif_orientation,
    is_local,
    loader_of,
    paths_exist,
    read_images,
    refuse_missing,
    refuse_narrow,
    size_rows,
)
from mmhatnet.data_checks.report import Job as AnyJob
from mmhatnet.data_checks.report import preview

HEAD = re.compile(r'\.(bbox|mask|mask_iou|panoptic|query)_head(\[\d+\])?$')
# Bytes that a process rarely has to spare.
MUCH_MEMORY = 4 * 2**30


class Job(AnyJob):
    """One dataset of a detector, with the evaluators that use it."""

    @property
    def classes(self) -> list[str]:
        return list(self.dataset.metainfo['classes'])

    @property
    def transforms(self) -> list[ConfigDict]:
        return [part for _, part in dicts_of(self.settings.get('pipeline'))]

    @cached_property
    def place(self) -> int:
        """The place of the dataset among those of the split."""
        return [one is self.settings for one in datasets_of(self.cfg, self.split)].index(True)

    @cached_property
    def alone(self) -> bool:
        """Whether the evaluators judge no other dataset."""
        return self._of_each() or len(list(datasets_of(self.cfg, self.split))) == 1

    def _of_each(self) -> bool:
        """Returns whether each dataset has an evaluator of its own."""
        given = self.cfg.get(f'{self.split}_evaluator')
        found = isinstance(given, dict) and class_of(EVALUATOR, given)
        return bool(found) and issubclass(found, MultiDatasetsEvaluator)

    def metrics(self) -> Iterator[tuple[str, ConfigDict]]:
        """Yields the evaluators of this dataset that compare with annotations."""
        name = f'{self.split}_evaluator'
        given = self.cfg.get(name)
        if self._of_each():
            name, given = f'{name}.metrics[{self.place}]', given.metrics[self.place]
        for path, metric in dicts_of(given, name):
            found = class_of(METRICS, metric)
            if found and issubclass(found, CocoMetric) and not metric.get('format_only'):
                yield path, metric

    def judges_masks(self) -> bool:
        return any('segm' in metric.get('metric', 'bbox') for _, metric in self.metrics())


def check_detection(job: AnyJob) -> None:
    """Checks one dataset of a detector."""
    job, dataset = Job(**vars(job)), job.dataset
    if not _reads_coco(dataset):
        job.note(
            f'not checked, as {type_name(job.settings)} reads no local file as CocoDataset does'
        )
        return
    if not paths_exist(job, {'ann_file': dataset.ann_file}):
        return
    try:
        file = read_coco(dataset.ann_file, job.report)
    except ValueError as error:
        job.refuse(f'{error}')
        return
    objects = Objects(file, dataset)
    # Wrong names cause further errors, which would only distract.
    if _check_names(job, file):
        _check_heads(job)
        _check_training_agrees(job)
        _check_evaluators(job, file, objects)
        _check_something_is_left(job, file, objects)
    _check_far_boxes(job, file, objects)
    _check_boxes(job, file, objects)
    _check_masks(job, file, objects)
    _count(job, file, objects, _check_images(job, [file.images[i] for i in objects.kept]))


def _reads_coco(dataset: object) -> bool:
    usual = ('load_data_list', 'parse_data_info', 'filter_data')
    return (
        isinstance(dataset, CocoDataset)
        and all(getattr(type(dataset), name) is getattr(CocoDataset, name) for name in usual)
        and is_local(dataset.ann_file, dataset.backend_args)
    )


def _check_names(job: Job, file: CocoFile) -> bool:
    """Compares classes with categories, whose order determines the labels in MMDetection."""
    classes, names = job.classes, [category['name'] for category in file.categories]
    numbered = [name for name in names if name in classes]
    missing = [name for name in classes if name not in names]
    left_out = [name for name in names if name not in classes]
    objects = Counter(a['category_id'] for a in file.annotations)
    source = 'that metainfo names'
    if 'classes' not in (job.settings.get('metainfo') or {}):
        source = f'of {type_name(job.settings)}, which hold where no metainfo has classes'
    # Some tools write a supercategory that no object belongs to.
    wanted = [c['name'] for c in file.categories if c['id'] in objects or c['name'] in classes]
    wanted = f'set metainfo=dict(classes=({preview(map(repr, wanted or names), 20)},))'
    in_order = numbered == classes[: len(numbered)]
    twice = [n for n in numbered if numbered.count(n) > 1 or classes.count(n) > 1]
    # A file may have fewer classes than the config, if it has the first ones.
    lacks = not numbered or (missing and (job.split != 'train' or left_out or not in_order))
    if lacks:
        near = get_close_matches(missing[0], left_out if numbered else [], 1)
        guess = f' (did you mean {near[0]!r}?)' if near else ''
        rest = f', and has {preview(left_out)}, which the config leaves out' if left_out else ''
        job.refuse(
            f'{file.path} lacks classes {source}: {preview(missing)}{guess}{rest}, so that '
            f'objects would get wrong names, or none: {wanted}, or add the categories to the file'
        )
    elif twice:
        job.refuse(
            f'{file.path} ({preview(names)}) or metainfo ({preview(classes)}) has the same name '
            f'({twice[0]}) twice, and those after it get wrong names: merge them, or rename one'
        )
    elif not in_order:
        job.refuse(
            f'the classes are numbered as the categories of {file.path} ({preview(numbered)}), not '
            f'as those of metainfo ({preview(classes)}), so that their names would be swapped: '
            f'{wanted}'
        )
    elif left_out:
        number = sum(objects[c['id']] for c in file.categories if c['name'] in left_out)
        job.note(
            f'{file.path}: the config leaves out {len(left_out)} of {len(names)} categories '
            f'({preview(left_out)}), with {number:,} objects'
        )
    return in_order and not lacks and not twice


def _check_heads(job: Job) -> None:
    for path, head in dicts_of(job.cfg.model, 'model'):
        if not HEAD.search(path) or head.get('class_agnostic'):
            continue
        setting, number = 'num_classes', head.get('num_classes')
        if 'num_things_classes' in head:
            setting = 'num_things_classes'
            number = head.num_things_classes + head.get('num_stuff_classes', 0)
            weight = (head.get('loss_cls') or {}).get('class_weight')
            if isinstance(weight, Sequence) and len(weight) != number + 1:
                job.report.errors.append(
                    f'{path}.loss_cls.class_weight has {len(weight)} numbers, and {number} classes '
                    f'need one more, for what is no object: set [1.0] * {len(job.classes)} + [0.1].'
                )
        if number is not None:
            check_number(job, f'{path}.{setting}', number, job.classes)


def _check_training_agrees(job: Job) -> None:
    """Compares the classes with those of training, whose order is that of the model's outputs."""
    trained = datasets_of_training(job.cfg) if job.split != 'train' else []
    others = [list(dataset.metainfo.get('classes') or job.classes) for dataset in trained]
    if others and job.classes not in others:
        job.refuse(
            f'the classes ({preview(job.classes)}) are not those of train_dataloader '
            f'({preview(others[0])}), which number the outputs of the model: set the same metainfo',
            # The tested model may come from another config.
            sure=job.split == 'val',
        )


def _check_evaluators(job: Job, file: CocoFile, objects: Objects) -> None:
    metrics = list(job.metrics())
    check_names(job, metrics)
    if metrics:
        _check_images_differ(job, file, objects)
        _check_all_are_tested(job, file, objects)
    for where, metric in metrics:
        check_settings(job, where, metric)
        path = metric.get('ann_file')
        set_it = f'set it to {file.path}, which {job.where} reads.'
        if not job.alone:
            set_it = (
                'it judges all datasets of the split, so merge their files into one with an id for '
                'each image, test one of them, or give each an evaluator of its own with '
                "type='MultiDatasetsEvaluator'."
            )
        if path is None:
            packs = [t for t in job.transforms if str(t.get('type')).endswith('PackDetInputs')]
            if packs and not any('instances' in pack.get('meta_keys', ()) for pack in packs):
                job.report.errors.append(f'{where} has no ann_file: {set_it}')
        elif is_local(path, metric.get('backend_args')):
            same = os.path.realpath(path) == os.path.realpath(file.path)
            try:
                answers = file if same else _read_answers(job, file, path)
            except ValueError as error:
                job.report.errors.append(f'{where}.ann_file: {error}: {set_it}')
                continue
            compared = objects if same else Objects(answers, job.dataset)
            check_answers(job, answers, metric)
            check_room(job, answers, metric, compared)
            _check_none_is_left(job, answers)
            if not same:
                _check_far_boxes(job, answers, compared)
                _check_masks(job, answers, compared)


def _check_images_differ(job: Job, file: CocoFile, objects: Objects) -> None:
    """Refuses images of several datasets with the same id, which evaluators take for one image."""
    if job.alone:
        return
    ids = [file.images[i]['id'] for i in objects.kept]
    tested = job.report.tested.setdefault(job.split, {})
    if common := [i for i in ids if i in tested]:
        job.refuse(
            f'{len(common):,} of its images (ids {preview(common)}) have the ids of images of '
            f'{tested[common[0]]}, and an evaluator takes both for one image: number them anew, '
            "and merge the files, or give each an evaluator with type='MultiDatasetsEvaluator'"
        )
    tested.update(dict.fromkeys(ids, file.path))


def _check_none_is_left(job: Job, answers: CocoFile) -> None:
    """Notes images of an evaluator that no dataset has, once all of them are known."""
    if job.alone or job.place < len(list(datasets_of(job.cfg, job.split))) - 1:
        return
    ids = [image['id'] for image in answers.images]
    if left := [i for i in ids if i not in job.report.tested[job.split]]:
        job.note(
            f'{answers.path}: {len(left):,} of {len(ids):,} images are in none of the datasets '
            f'(ids {preview(left)}), and their objects count as missed, so that AP will be too low'
        )


def _check_all_are_tested(job: Job, file: CocoFile, objects: Objects) -> None:
    """Notes that a dataset leaves out images of its file."""
    if left := len(file.images) - len(objects.kept):
        reason = f'filter_cfg={dict(job.dataset.filter_cfg or {})} without test_mode=True leaves'
        if job.dataset._indices is not None:
            reason = f'indices={job.dataset._indices} leaves'
        job.note(
            f'{reason} out {left:,} of {len(file.images):,} images, whose objects the evaluator '
            'counts as missed, so that AP will be wrong'
        )


def _read_answers(job: Job, file: CocoFile, path: str) -> CocoFile:
    """Reads an evaluator's own file; raises a ValueError if it does not fit the dataset."""
    answers = read_coco(path, job.report)
    own = {image['id'] for image in file.images}

    def compared(file: CocoFile) -> tuple[set, list, list]:
        return (
            {(image['id'], image['file_name']) for image in file.images},
            [(c['id'], c['name']) for c in file.categories if c['name'] in job.classes],
            sorted(
                f'{a["image_id"]} {a["category_id"]} {a["bbox"]}'
                for a in file.annotations
                if job.alone or a['image_id'] in own
            ),
        )

    (images, categories, boxes), wanted = compared(answers), compared(file)
    # A file for several datasets may name images by longer paths.
    ids = {image['id'] for image in answers.images}
    common = len(images & wanted[0]) if job.alone else len(ids & own)
    if common < len(file.images) or (job.alone and common < len(answers.images)):
        raise ValueError(
            f'{path} has {len(answers.images):,} images, of which {common:,} are among the '
            f'{len(file.images):,} that are read'
        )
    if categories != wanted[1]:
        raise ValueError(f'the categories of {path} have other ids or another order')
    if boxes != wanted[2]:
        trained = [os.path.realpath(train.ann_file) for train in datasets_of_training(job.cfg)]
        if os.path.realpath(path) in trained:
            raise ValueError(f'{path} holds the training data')
        if not job.alone:
            raise ValueError(f'{path} has other annotations than {file.path}')
        job.note(f'the evaluator reads {path}, with other annotations than {file.path}')
    return answers


def _check_far_boxes(job: Job, file: CocoFile, objects: Objects) -> None:
    """Refuses boxes that cannot be meant."""
    reach = FAR * objects.room.max(axis=1, initial=0, keepdims=True)
    far = (objects.low < -reach) | (objects.high > objects.room + reach)
    found = np.flatnonzero(objects.named & (objects.room > 0).all(1) & far.any(1))
    if len(found):
        box, (width, height) = file.annotations[found[0]]['bbox'], objects.room[found[0]]
        job.refuse(
            f'{file.path}: {objects.preview(found)} have a box far outside of their image, as '
            f'{short(box)} of {width:g} x {height:g} pixels: correct them'
        )


def _check_boxes(job: Job, file: CocoFile, objects: Objects) -> None:
    lost = np.flatnonzero(objects.named & ~objects.used)
    if len(lost):
        missed = ' and count as missed' if any(job.metrics()) else ''
        job.note(
            f'{file.path}: {objects.preview(lost)} are left out{missed}, as their box is outside '
            'of the image or thinner than a pixel, or their area is 0'
        )
    beyond = (objects.low < -1) | (objects.high > objects.room + 1)
    reaching = np.flatnonzero(objects.used & beyond.any(1))
    if len(reaching):
        job.note(
            f'{file.path}: {objects.preview(reaching)} reach out of their image: a box is x, y, '
            'width and height, not two corners'
        )


def _check_masks(job: Job, file: CocoFile, objects: Objects) -> None:
    judged, loaded = job.judges_masks(), any(t.get('with_mask') for t in job.transforms)
    if not judged and not loaded:
        return
    if loaded:
        _check_memory(job, file, objects)
    # Evaluators read objects that are marked as to ignore as well.
    read = (objects.label >= 0) & (objects.image >= 0) if judged else objects.used
    faults, values = {}, {}
    for i in np.flatnonzero(read):
        width, height = objects.room[i].tolist()
        mask = file.annotations[i].get('segmentation')
        if found := fault_of_mask(mask, height, width, judged):
            fault, value = found
            faults.setdefault(fault, []).append(i)
            values.setdefault(fault, value and f', as {value}')
    reader = f'the metric segm of {job.split}_evaluator' if judged else 'the model'
    for fault, found in faults.items():
        text = f'{file.path}: {objects.preview(found)} have {fault}{values[fault]}'
        if fault == NO_POLYGON and not judged:
            job.note(f'{text}: training takes no notice of them')
        elif fault in (NO_MASK, NO_POLYGON):
            job.refuse(
                f'{text}, which {reader} needs: give them polygons, remove them, or train a '
                'detector of boxes, such as mmhatnet::retinanet_hatnet.py'
            )
        else:
            job.refuse(f'{text}, which {reader} cannot decode: correct them, or remove them')


def _check_memory(job: Job, file: CocoFile, objects: Objects) -> None:
    """Notes an image whose masks take much memory, a byte per pixel and object."""
    objects_of = np.bincount(objects.image[objects.used], minlength=len(objects.sizes))
    needed = objects_of * objects.sizes.prod(axis=1)
    if needed.max(initial=0) > MUCH_MEMORY:
        image, number = file.images[needed.argmax()], objects_of[needed.argmax()]
        job.note(
            f'{file.path}: the masks of the {number:,} objects of {image["file_name"]}, '
            f'{image["width"]} x {image["height"]} pixels, take {needed.max() / 2**30:,.0f} GiB in '
            'each process that loads them: cut the image into tiles if the memory is smaller'
        )


def _check_something_is_left(job: Job, file: CocoFile, objects: Objects) -> None:
    total, named = len(file.images), objects.named
    unsized = [image for image in file.images if image['width'] <= 0]
    if not file.images:
        job.refuse(f'{file.path} has no images, its "images" is empty')
    elif job.split == 'train' and unsized:
        job.refuse(
            f'{file.path}: the width of {len(unsized):,} of {total:,} images (ids '
            f'{preview(image["id"] for image in unsized)}) is {unsized[0]["width"]}, so that their '
            'objects are left out: write the sizes of the images into the file'
        )
    elif job.split == 'train' and named.any() and not objects.used.any():
        reason = 'is outside of its image, thinner than a pixel or of area 0'
        if (objects.high[named] <= 2).all():
            reason = 'is given in fractions of the image, not in pixels'
        job.refuse(
            f'{file.path}: none of {named.sum():,} objects can be used, as each box {reason}'
        )
    elif not len(objects.kept):
        job.refuse(
            f'{file.path}: none of {total:,} images is left by filter_cfg='
            f'{dict(job.dataset.filter_cfg or {})} and indices={job.dataset._indices}; '
            f'{named.sum():,} of {len(named):,} annotations are of the classes'
        )


def _check_images(job: Job, images: list[dict]) -> int:
    """Checks that images exist and have the right sizes; returns the number of images read."""
    folder = job.dataset.data_prefix.get('img')
    backend = next((t['backend_args'] for t in job.transforms if 'backend_args' in t), None)
    if not all(is_local(os.path.join(folder or '', i['file_name']), backend) for i in images):
        job.note('the images are not checked, because they are not on a local disk')
        return 0
    if not paths_exist(job, {'data_prefix=dict(img=FOLDER)': folder}):
        return 0
    sizes = {os.path.join(folder, i['file_name']): (i['height'], i['width']) for i in images}
    refuse_narrow(job, {path: size for path, size in sizes.items() if min(size) > 0})
    missing = refuse_missing(job, list(sizes), 'images', lambda path: _hint_for_path(job, path))
    read = read_images(job, [path for path in sizes if path not in missing])
    _check_sizes(job, read, sizes)
    return len(read)


def _hint_for_path(job: Job, path: str) -> str:
    """Suggests how to find a missing image."""
    root, folder = job.dataset.data_root or '', job.dataset.data_prefix['img']
    name = os.path.relpath(path, folder or '.')
    for other, hint in (
        (os.path.join(root, name), 'set data_prefix=dict(img="")'),
        (os.path.join(folder, re.split(r'[\\/]', name)[-1]), 'write file_name without folders'),
    ):
        if os.path.isfile(other) and os.path.getsize(other):
            return f'{other} is there: {hint}'
    return f'replace them, or remove them from {job.dataset.ann_file}'


def _check_sizes(job: Job, read: dict, wanted: dict) -> None:
    """Compares the (height, width) of loaded images with those in the file."""
    slight = 0 if job.judges_masks() else 1
    load = loader_of(job)
    loading = (load.color_type, load.imdecode_backend) if load else ()
    other = {}
    for path, size in read.items():
        if size != wanted[path] and min(wanted[path]) > 0:
            near = all(abs(a - b) <= slight for a, b in zip(size, wanted[path]))
            hint = '' if near else _hint_for_size(path, size, wanted[path], loading)
            other.setdefault(hint, []).append(path)
    for hint, paths in other.items():
        (h, w), (wanted_h, wanted_w) = read[paths[0]], wanted[paths[0]]
        job.refuse(
            f'{len(paths):,} of {len(read):,} images that were read have another size than '
            f'{job.dataset.ann_file} says, such as {paths[0]}, which is {w} x {h} instead of '
            f'{wanted_w} x {wanted_h}{hint}',
            sure=hint != '',
        )
    turned = [
        path
        for path, (h, w) in read.items()
        # Sizes reveal whether annotations were made on the turned image, except for squares.
        if (h, w) == wanted[path]
        and exif_orientation(path, *loading) in range(2, 9 if h == w else 5)
    ]
    if turned:
        job.note(
            f'{len(turned):,} of {len(read):,} images that were read, such as {turned[0]}, are '
            'turned or mirrored by their EXIF orientation when they are loaded: their annotations '
            'must have been made on them as shown'
        )


def _hint_for_size(
    path: str, size: tuple[int, int], wanted: tuple[int, int], loading: Sequence[str]
) -> str:
    if size != wanted[::-1]:
        return ': use the images that were annotated, or scale the annotations'
    if exif_orientation(path, *loading) < 5:
        return ': width and height are swapped in the file, or the image was turned'
    remedy = 'store the image without it'  # TIFF is turned in any case
    if exif_orientation(path, 'color_ignore_orientation', *loading[1:]) < 5:
        remedy = 'set color_type="color_ignore_orientation" for LoadImageFromFile in all pipelines'
    return (
        ', as its EXIF orientation turns it when it is loaded and its annotations were made '
        f'without: {remedy}, or annotate the image as it is shown'
    )


def _count(job: Job, file: CocoFile, objects: Objects, read: int) -> None:
    used = objects.used & np.isin(objects.image, objects.kept)
    sizes = objects.sizes[objects.kept].astype(int)
    facts = {
        'annotation file': file.path,
        'images in it': len(file.images),
        'images used': len(objects.kept),
        'of these without objects': len(objects.kept) - len(np.unique(objects.image[used])),
        'of these decoded': read,
        'objects': int(used.sum()),
    }
    job.report.count('Data', job.split, facts | size_rows(sizes[:, ::-1].tolist()))
    numbers = np.bincount(objects.label[used], minlength=len(job.classes)).tolist()
    job.report.count('Objects of each class', job.split, dict(zip(job.classes, numbers)))
    unknown = [name for name, number in zip(job.classes, numbers) if not number]
    if job.split == 'train' and unknown and not job.report.errors:
        job.note(f'{file.path} has nothing to train with for {preview(unknown)}')
