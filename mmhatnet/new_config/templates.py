"""The text of a config that trains on a user's own data."""

from pathlib import Path

from mmengine.config import Config
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
DETECTION = """{made}
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
MADE = """
# The annotation files are made from yours. After a change of these, run new-config again."""
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
# The recipe's sampler repeats images, and takes them in rounds of 256.
sampler = dict(_delete_=True, type='DefaultSampler', shuffle=True)
train_dataloader = dict(dataset=dict(**dataset, **train_data), sampler=sampler)
val_dataloader = dict(dataset=dict(**dataset, split='val', data_prefix={parts[val]!r}))
test_dataloader = val_dataloader
val_evaluator = dict(topk={topk})
test_evaluator = val_evaluator
"""
BASES = dict(
    maskrcnn='hatnet/mask-rcnn_hatnet-{letter}_fpn_1x_coco.py',
    retinanet='hatnet/retinanet_hatnet-{letter}_fpn_1x_coco.py',
    semfpn='hatnet/hatnet-{letter}_fpn_4xb4-80k_ade20k-512x512.py',
    imagenet='hatnet/hatnet-{arch}_8xb128_in1k.py',
)
TEMPLATES = dict(
    maskrcnn='model = dict(roi_head=dict(bbox_head=number, mask_head=number))\n' + DETECTION,
    retinanet='model = dict(bbox_head=number)\n' + DETECTION,
    semfpn=SEGMENTATION,
    imagenet=CLASSIFICATION,
)


def render_config(found: dict[str, object], root: Path, arch: str) -> str:
    """Returns the text of a config for a folder of data.

    Args:
        found (dict): What ``read_layout`` finds in the folder.
        root (Path): The folder.
        arch (str): The variant of HAT-Net.
    """
    name = BASES[found['job']].format(arch=arch, letter=arch[0])
    base = Config.fromfile(config_path(name))
    hatnet = Config.fromfile(config_path('_base_/hatnet.py')).hatnet[arch]
    conversion = found.get('conversion')
    text = CONFIG.replace('{rest}', TEMPLATES[found['job']]).format(
        base=name,
        made=MADE if conversion and conversion.made else '',
        root=f'{root.as_posix()}/',
        weights=hatnet.init_cfg.checkpoint,
        rate=base.optim_wrapper.optimizer.lr,
        batch=base.train_dataloader.batch_size,
        base_batch=base.auto_scale_lr.base_batch_size,
        **found,
    )
    return FormatCode(text, style_config=dict(based_on_style='pep8', column_limit=100))[0]
