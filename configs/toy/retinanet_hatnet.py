_base_ = ['../retinanet_hatnet.py', 'coco_toy.py']

# From random weights a head learns faster with normalisation, as in MMDetection's own configs for
# training from scratch.
norm_cfg = dict(type='GN', num_groups=16, requires_grad=True)
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=[48, 96, 240, 384], out_channels=64, norm_cfg=norm_cfg),
    bbox_head=dict(in_channels=64, feat_channels=64, norm_cfg=norm_cfg, num_classes=5),
)

train_dataloader = _base_.toy.train_dataloader
val_dataloader = _base_.toy.val_dataloader
test_dataloader = val_dataloader
val_evaluator = _base_.toy.val_evaluator
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=8, val_interval=4)
optim_wrapper = _base_.toy.optim_wrapper
param_scheduler = _base_.toy.param_scheduler
default_hooks = _base_.toy.default_hooks
