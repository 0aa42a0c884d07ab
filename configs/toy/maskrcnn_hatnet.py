_base_ = ['../maskrcnn_hatnet.py', 'coco_toy.py']

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=[48, 96, 240, 384], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=5),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_classes=5),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=256), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(max_per_img=128)),
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
