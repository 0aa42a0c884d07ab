# RetinaNet 1x on COCO with P2T tiny.
_base_ = 'retinanet_p2t-s_fpn_1x_coco.py'

model = dict(
    backbone=_base_.other_backbones.p2t.tiny,
    neck=dict(in_channels=[48, 96, 240, 384]),
)
