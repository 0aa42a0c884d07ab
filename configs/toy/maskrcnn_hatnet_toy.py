# Mask R-CNN on the synthetic data of tools/make_toy_data.py, in COCO's layout.
_base_ = ['../hatnet/mask-rcnn_hatnet-s_fpn_1x_coco.py', 'coco_toy.py']

norm_cfg = _base_.toy.norm_cfg
# Objects span 8 to 87 pixels: four levels of small anchors and few proposals suffice.
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=[48, 96, 240, 384], out_channels=64, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(
            in_channels=64,
            fc_out_channels=256,
            num_classes=4,
            # Classes take longest to learn, and box losses of the usual weight dominate them.
            loss_bbox=dict(loss_weight=0.3),
        ),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64, norm_cfg=norm_cfg, num_classes=4),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=256, max_per_img=128), rcnn=dict(sampler=dict(num=64))
    ),
    test_cfg=dict(rpn=dict(nms_pre=256, max_per_img=100)),
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
randomness = dict(seed=0)
# Lower bounds for any seed, which tools/check_goals.py checks.
goals = {'coco/bbox_mAP_50': 0.6, 'coco/segm_mAP_50': 0.6}
