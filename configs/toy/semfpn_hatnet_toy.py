# Semantic FPN on the synthetic data of tools/make_toy_data.py, in ADE20K's layout.
_base_ = '../hatnet/hatnet-s_fpn_4xb4-80k_ade20k-512x512.py'

classes = ('building', 'sky', 'tree', 'road', 'grass', 'car')
crop_size = (128, 128)
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(arch='tiny', drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=[48, 96, 240, 384], out_channels=64),
    decode_head=dict(
        in_channels=[64, 64, 64, 64], channels=64, num_classes=len(classes), norm_cfg=norm_cfg
    ),
)

dataset = dict(data_root='data/toy/ade/ADEChallengeData2016', metainfo=dict(classes=classes))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(160, 128), ratio_range=(1.0, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 128), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(**dataset, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader

iterations = 90
train_cfg = dict(max_iters=iterations, val_interval=iterations)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=20, end=iterations, by_epoch=False),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=iterations))
randomness = dict(seed=0)
# Lower bounds for any seed, which tools/check_goals.py checks.
goals = {'mIoU': 60}
