# RetinaNet on the synthetic data of tools/make_toy_data.py, in COCO's layout.
_base_ = ['../hatnet/retinanet_hatnet-s_fpn_1x_coco.py', 'coco_toy.py']

norm_cfg = _base_.toy.norm_cfg
# Objects span 8 to 87 pixels, so the head is smaller than COCO needs.
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.0, init_cfg=None),
    neck=dict(
        in_channels=[48, 96, 240, 384],
        out_channels=64,
        start_level=0,
        num_outs=4,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        num_classes=4,
        in_channels=64,
        feat_channels=64,
        stacked_convs=1,
        norm_cfg=norm_cfg,
        anchor_generator=dict(scales_per_octave=2, strides=[4, 8, 16, 32]),
        # In a few minutes, the usual focal loss learns where objects are but hardly their classes,
        # and box losses of the usual weight dominate it.
        loss_cls=dict(gamma=0.5, alpha=0.5),
        loss_bbox=dict(loss_weight=0.2),
        # With normalization after it, a layer initialized with std 0.01 would change by several per
        # cent a step.
        init_cfg=dict(
            type='Xavier',
            layer='Conv2d',
            distribution='uniform',
            override=[
                dict(type='Normal', name='retina_cls', std=0.01, bias_prob=0.01),
                dict(type='Normal', name='retina_reg', std=0.01),
            ],
        ),
    ),
    test_cfg=dict(nms_pre=256),
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
goals = {'coco/bbox_mAP_50': 0.4}
