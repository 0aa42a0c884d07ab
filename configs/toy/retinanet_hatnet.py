_base_ = ['../retinanet_hatnet.py', 'coco_toy.py']

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=[48, 96, 240, 384], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, num_classes=5),
)

train_dataloader = _base_.toy.train_dataloader
val_dataloader = _base_.toy.val_dataloader
test_dataloader = val_dataloader
val_evaluator = _base_.toy.val_evaluator
test_evaluator = val_evaluator
train_cfg = _base_.toy.train_cfg
optim_wrapper = _base_.toy.optim_wrapper
param_scheduler = _base_.toy.param_scheduler
default_hooks = _base_.toy.default_hooks
