"""The text of a config that trains on a user's own data, with the settings of a recipe."""

import textwrap
from pathlib import Path

from mmengine.config import Config
from yapf.yapflib.yapf_api import FormatCode

from mmhatnet import config_path
from mmhatnet.new_config.recipe import Recipe, Setting

WIDTH = 100
CONFIG = """_base_ = __import__('mmhatnet').config_path({base!r})

classes = {classes!r}
number = dict(num_classes=len(classes))
{rest}
{model}
{why_epochs}
{loop}
{why_warm_up}
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, end={warm_up}),
    {decay}
]
{why_learning_rate}
# With more GPUs than one, add --auto-scale-lr.
optim_wrapper = dict(optimizer=dict(lr={learning_rate:g}), clip_grad=dict({clip}max_norm=10))
auto_scale_lr = dict(base_batch_size={batch_size})
{why_validate_every}
checkpoint = dict(interval={validate_every}, max_keep_ckpts=1, save_best={metric!r})
{hooks}
"""
# A training counts epochs; or iterations, as a segmentor's does, and one of less than some epochs.
EPOCHS = dict(
    loop='train_cfg = dict(max_epochs={epochs}, val_interval={validate_every})',
    decay="dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=True, "
    'convert_to_iter_based=True),',
    hooks='default_hooks = dict(checkpoint=checkpoint)',
)
ITERATIONS = dict(
    loop="""train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters={iterations}, val_interval={validate_every})
log_processor = dict(by_epoch=False)""",
    decay="dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=False),",
    hooks="""default_hooks = dict(
    checkpoint=dict(**checkpoint, by_epoch=False), logger=dict(log_metric_by_epoch=False))""",
)
OF_SEGMENTORS = dict(
    loop='train_cfg = dict(max_iters={iterations}, val_interval={validate_every})',
    decay="dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False),",
    hooks='default_hooks = dict(checkpoint=checkpoint)',
)
LOADING = """{why_batch_size}
{why_workers}
loading = dict(batch_size={batch_size}, num_workers={workers})
"""
DETECTION = """{made}
data_root = {root!r}
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
{why_image_size}
train_pipeline[2].scale = test_pipeline[1].scale = ({image_size}, {image_size})

{loading}train_data = dict(
    ann_file={files[train]!r}, data_prefix=dict(img={places[train]!r}),{filter}
    pipeline=train_pipeline)
train_dataloader = dict(dataset=dict(**dataset, **train_data), **loading)
val_data = dict(
    ann_file={files[val]!r}, data_prefix=dict(img={places[val]!r}), pipeline=test_pipeline)
val_dataloader = dict(dataset=dict(**dataset, **val_data), num_workers={workers})
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + {files[val]!r})
test_evaluator = val_evaluator
"""
MADE = """
# The annotation files are made from yours. After a change of these, run new-config again."""
FILTER = 'filter_cfg=dict(filter_empty_gt=True, min_size={narrowest}),'
SEGMENTATION = """
# Label 0 of the masks is {first}, and 255 is ignored.
reduce_zero_label = {reduce}
dataset = dict(
    type='BaseSegDataset', data_root={root!r}, metainfo=dict(classes=classes),
    img_suffix={suffixes[0]!r}, seg_map_suffix={suffixes[1]!r}, reduce_zero_label=reduce_zero_label)
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1].reduce_zero_label = test_pipeline[2].reduce_zero_label = reduce_zero_label
{why_image_size}
size = {image_size}
train_pipeline[2].scale = test_pipeline[1].scale = (4 * size, size)
train_pipeline[3].crop_size = crop_size = (size, size)

{loading}train_data = dict(
    data_prefix=dict(img_path={images[train]!r}, seg_map_path={masks[train]!r}),
    pipeline=train_pipeline)
train_dataloader = dict(dataset=dict(**dataset, **train_data), **loading)
val_data = dict(
    data_prefix=dict(img_path={images[val]!r}, seg_map_path={masks[val]!r}), pipeline=test_pipeline)
val_dataloader = dict(dataset=dict(**dataset, **val_data), num_workers={workers})
test_dataloader = val_dataloader
"""
CLASSIFICATION = """
dataset = dict(data_root={root!r}, metainfo=dict(classes=classes))
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
{why_image_size}
size = {image_size}
train_pipeline[1].scale = test_pipeline[2].crop_size = size
test_pipeline[1].scale = size * 256 // 224

{loading}train_data = dict(
    split='train', data_prefix={parts[train]!r}, pipeline=train_pipeline)
# The inherited sampler repeats images, and takes them in rounds of 256.
sampler = dict(_delete_=True, type='DefaultSampler', shuffle=True)
train_data = dict(dataset=dict(**dataset, **train_data), sampler=sampler)
train_dataloader = dict(**train_data, **loading)
val_data = dict(split='val', data_prefix={parts[val]!r}, pipeline=test_pipeline)
val_dataloader = dict(dataset=dict(**dataset, **val_data), **loading)
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
    maskrcnn=DETECTION, retinanet=DETECTION, semfpn=SEGMENTATION, imagenet=CLASSIFICATION
)


def base_config(job: str, arch: str) -> str:
    """Returns the path below configs/ of the config that is inherited."""
    return BASES[job].format(arch=arch, letter=arch[0])


def published_weights(arch: str) -> str:
    """Returns the address of the published weights of a variant of HAT-Net."""
    return Config.fromfile(config_path('_base_/hatnet.py')).hatnet[arch].init_cfg.checkpoint


def render_config(
    found: dict[str, object], root: Path, arch: str, recipe: Recipe, weights: str | None = None
) -> str:
    """Returns the text of a config for a folder of data.

    Args:
        found (dict): What ``read_layout`` finds in the folder.
        root (Path): The folder.
        arch (str): The variant of HAT-Net.
        recipe (Recipe): The settings.
        weights (str, optional): The published weights, if not where the base config says.
    """
    job, name = found['job'], base_config(found['job'], arch)
    if job == 'imagenet' and weights is None:  # of which the base config knows nothing
        weights = published_weights(arch)
    base, conversion = Config.fromfile(config_path(name)), found.get('conversion')
    settings = {key: value for key, value in vars(recipe).items() if not isinstance(value, Setting)}
    for key, setting in vars(recipe).items():
        if isinstance(setting, Setting):
            settings.update({key: setting.value, f'why_{key}': _comment(setting.reason)})
    counting = EPOCHS if recipe.epochs.value else ITERATIONS
    if job == 'semfpn':
        counting = OF_SEGMENTORS
    filtered = FILTER if recipe.narrowest < 32 else ''
    clip = '_delete_=True, ' if job == 'semfpn' else ''  # whose base has None
    parts = dict(loading=LOADING, filter=filtered, clip=clip, **counting)
    text = CONFIG.replace('{rest}', TEMPLATES[job])
    for key, part in parts.items():
        text = text.replace(f'{{{key}}}', part)
    text = text.format(
        base=name,
        model=_model(job, base, recipe, weights),
        made=MADE if conversion and conversion.made else '',
        root=f'{root.as_posix()}/',
        **settings,
        **found,
    )
    # MMEngine replaces names in double braces, which are in names of the user alone.
    text = text.replace('{{', r'{\x7b')
    return FormatCode(text, style_config=dict(based_on_style='pep8', column_limit=WIDTH))[0]


def _comment(reason: str) -> str:
    return '\n'.join(textwrap.wrap(reason, WIDTH, initial_indent='# ', subsequent_indent='# '))


def _model(job: str, base: Config, recipe: Recipe, weights: str | None) -> str:
    """Returns the lines that set the classes, the anchors and the weights of a model."""
    heads = dict(
        maskrcnn='roi_head=dict(bbox_head=number, mask_head=number)',
        retinanet='bbox_head=number',
        semfpn='data_preprocessor=dict(size=crop_size), decode_head=number',
        imagenet='head=number',
    )
    parts, lines = [heads[job]], []
    if weights:
        kind = "type='Pretrained', " if job == 'imagenet' else ''
        lines.append(f'pretrained = dict({kind}checkpoint={weights!r})')
        parts.append('backbone=dict(init_cfg=pretrained)')
    if recipe.anchors.value > 1:
        lines.append(_comment(recipe.anchors.reason))
        if job == 'retinanet':
            scale = base.model.bbox_head.anchor_generator.octave_base_scale // recipe.anchors.value
            lines.append(f'anchors = dict(anchor_generator=dict(octave_base_scale={scale}))')
            parts[0] = 'bbox_head=dict(**number, **anchors)'
        else:
            scale = base.model.rpn_head.anchor_generator.scales[0] // recipe.anchors.value
            lines.append(f'anchors = dict(anchor_generator=dict(scales=[{scale}]))')
            parts.append('rpn_head=anchors')
    if job == 'imagenet':
        lines.append('data_preprocessor = number')
    return '\n'.join([*lines, f'model = dict({", ".join(parts)})', ''])
