"""Writes the config that trains on a folder of your own, which it looks at.

    python tools/new_config.py --data FOLDER        # then: python tools/train.py config.py

The folder holds COCO annotations (as Roboflow, CVAT and Label Studio export them, too), or pictures
and masks (images/train and annotations/train, or the names of ADE20K and MMSegmentation), or a
folder of pictures for each class in train/ and val/.
"""

import argparse
from pathlib import Path

from mmengine.config import Config
from mmhatnet.preflight.layouts import look_at
from yapf.yapflib.yapf_api import FormatCode

from mmhatnet import config_path

CONFIG = """_base_ = __import__('mmhatnet').config_path({base!r})

classes = {classes!r}
number = dict(num_classes=len(classes))
{rest}
# The inherited rate, {rate:g}, is for batches of {base_batch}. One GPU has batches of {batch}, and
# the rate is in proportion; with more GPUs, add --auto-scale-lr.
optim_wrapper = dict(optimizer=dict(lr={rate:g} * {batch} / {base_batch}))
auto_scale_lr = dict(base_batch_size={batch})
"""
DETECTION = """
data_root = {root!r}
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_data = dict(ann_file={files[train]!r}, data_prefix=dict(img={places[train]!r}))
train_dataloader = dict(dataset=dict(**dataset, **train_data))
val_data = dict(ann_file={files[val]!r}, data_prefix=dict(img={places[val]!r}))
val_dataloader = dict(dataset=dict(**dataset, **val_data))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + {files[val]!r})
test_evaluator = val_evaluator
"""
SEGMENTATION = """model = dict(decode_head=number)

# Label 0 of the masks is {first}, and 255 is ignored.
reduce_zero_label = {reduce}
dataset = dict(
    type='BaseSegDataset', data_root={root!r}, metainfo=dict(classes=classes),
    img_suffix={suffixes[0]!r}, seg_map_suffix={suffixes[1]!r}, reduce_zero_label=reduce_zero_label)
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1].reduce_zero_label = test_pipeline[2].reduce_zero_label = reduce_zero_label
train_data = dict(img_path={images[train]!r}, seg_map_path={masks[train]!r})
train_dataloader = dict(dataset=dict(**dataset, data_prefix=train_data, pipeline=train_pipeline))
val_data = dict(img_path={images[val]!r}, seg_map_path={masks[val]!r})
val_dataloader = dict(dataset=dict(**dataset, data_prefix=val_data, pipeline=test_pipeline))
test_dataloader = val_dataloader
"""
CLASSIFICATION = """data_preprocessor = number
pretrained = dict(type='Pretrained', checkpoint={weights!r})
model = dict(backbone=dict(init_cfg=pretrained), head=number)

dataset = dict(data_root={root!r}, metainfo=dict(classes=classes))
train_data = dict(split='train', data_prefix={parts[train]!r})
# The recipe's sampler repeats pictures, and takes them in rounds of 256.
sampler = dict(_delete_=True, type='DefaultSampler', shuffle=True)
train_dataloader = dict(dataset=dict(**dataset, **train_data), sampler=sampler)
val_dataloader = dict(dataset=dict(**dataset, split='val', data_prefix={parts[val]!r}))
test_dataloader = val_dataloader
val_evaluator = dict(topk={topk})
test_evaluator = val_evaluator
"""
TEMPLATES = dict(
    maskrcnn='model = dict(roi_head=dict(bbox_head=number, mask_head=number))\n' + DETECTION,
    retinanet='model = dict(bbox_head=number)\n' + DETECTION,
    semfpn=SEGMENTATION,
    imagenet=CLASSIFICATION,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=Path, required=True, help='the folder of the data')
    parser.add_argument('--job', choices=['maskrcnn', 'retinanet', 'semfpn', 'imagenet'])
    parser.add_argument('--arch', choices=['tiny', 'small', 'medium', 'large'], default='tiny')
    parser.add_argument('--out', type=Path, default='config.py', help='the config to write')
    parser.add_argument('--classes', nargs='+', help='the names of the labels of masks, in order')
    words = 'divide a single file of annotations: write NAME_train.json and NAME_val.json beside it'
    parser.add_argument('--split', action='store_true', help=words)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out.exists():
        raise SystemExit(f'{args.out} exists already: name another file with --out.')
    found = look_at(args.data, args.job, names=args.classes, split=args.split)
    name = f'{found["job"]}_hatnet{"" if args.arch == "small" else f"_{args.arch}"}.py'
    base = Config.fromfile(config_path(name))
    hatnet = Config.fromfile(config_path('_base_/hatnet.py')).hatnet[args.arch]
    text = CONFIG.replace('{rest}', TEMPLATES[found['job']]).format(
        base=name,
        root=f'{args.data.as_posix()}/',
        weights=hatnet.init_cfg.checkpoint,
        rate=base.optim_wrapper.optimizer.lr,
        batch=base.train_dataloader.batch_size,
        base_batch=base.auto_scale_lr.base_batch_size,
        **found,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    style = dict(based_on_style='pep8', column_limit=100)
    args.out.write_text(FormatCode(text, style_config=style)[0], encoding='utf-8')
    print(f'{args.out} trains {found["job"]} on {args.data}: python tools/train.py {args.out}')


if __name__ == '__main__':
    main()
