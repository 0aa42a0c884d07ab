"""A small job of a detector with data in COCO format."""

import copy
import json

import numpy as np
from mmengine.config import Config
from PIL import Image

from mmhatnet.data_checks import check_data


def image(path, width=40, height=30, orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    pixels = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    # Of a camera with two lenses.
    second = dict(save_all=True, append_images=[pixels]) if path.suffix == '.mpo' else {}
    pixels.save(path, exif=exif, **second)


def content(names=('cat', 'dog')):
    def annotation(number):
        polygon = [5, 5, 25, 5, 25, 20, 5, 20]
        return dict(id=number, image_id=number, category_id=2 - number % 2, bbox=[5, 5, 20, 15],
                    area=300, iscrowd=0, segmentation=[polygon])  # fmt: skip

    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=40, height=30) for i in (1, 2, 3)],
        annotations=[annotation(i) for i in (1, 2, 3)],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(names)],
    )


class Project:
    """A sound job with three images per split, for tests to break."""

    def __init__(self, folder):
        self.folder = folder
        self.files = dict(train=content(), val=content())
        self.files['val']['annotations'][0]['bbox'] = [6, 5, 20, 15]
        for split in self.files:
            (folder / split).mkdir()
            for i in (1, 2, 3):
                image(folder / split / f'{i}.jpg')
        self.cfg = Config(dict(default_scope='mmdet', model=dict(roi_head=dict())))
        for head in ('bbox_head', 'mask_head'):
            self.cfg.model.roi_head[head] = dict(num_classes=2)
        pipeline = [dict(type='LoadImageFromFile'),
                    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                    dict(type='PackDetInputs')]  # fmt: skip
        for split in self.files:
            self.cfg[f'{split}_dataloader'] = dict(
                dataset=dict(
                    type='CocoDataset',
                    data_root=str(folder),
                    ann_file=f'{split}.json',
                    data_prefix=dict(img=split),
                    metainfo=dict(classes=('cat', 'dog')),
                    filter_cfg=dict(filter_empty_gt=True, min_size=8),
                    test_mode=split == 'val',
                    pipeline=copy.deepcopy(pipeline),
                )
            )
        ann_file = str(folder / 'val.json')
        self.cfg.val_evaluator = dict(type='CocoMetric', ann_file=ann_file, metric=['bbox', 'segm'])

    def __getattr__(self, name):
        if name in ('train', 'val'):
            return self.cfg[f'{name}_dataloader'].dataset
        raise AttributeError(name)

    def check(self, *splits):
        for split, text in self.files.items():
            text = text if isinstance(text, str) else json.dumps(text)
            (self.folder / f'{split}.json').write_text(text)
        return check_data(self.cfg, *(splits or ('train', 'val')))

    def error(self, *splits):
        """Returns the only error."""
        (error,) = self.check(*splits).errors
        assert error.endswith('.') and '\n' not in error
        return error

    def note(self, *splits):
        """Returns the only note, if there are no errors."""
        report = self.check(*splits)
        assert not report.errors
        (note,) = report.notes
        return note
