# Classification on the synthetic data of tools/make_toy_data.py, in ImageNet's layout.
_base_ = '../hatnet/hatnet-small_8xb128_in1k.py'

classes = ('beach wagon', 'soccer ball', 'umbrella')
data_preprocessor = dict(num_classes=len(classes))
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.0),
    head=dict(in_channels=384, num_classes=len(classes)),
    train_cfg=None,
)

dataset = dict(data_root='data/toy/imagenet', metainfo=dict(classes=classes))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.5, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=64, edge='short'),
    dict(type='CenterCrop', crop_size=64),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, pipeline=train_pipeline),
)
val_dataloader = dict(batch_size=32, num_workers=1, dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=12, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=20),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10))
randomness = dict(seed=0)
# Lower bounds for any seed, which tools/check_goals.py checks.
goals = {'accuracy/top1': 90}
