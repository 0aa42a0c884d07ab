# RetinaNet 1x on COCO with P2T base.
_base_ = 'retinanet_p2t-s_fpn_1x_coco.py'

model = dict(
    backbone=_base_.other_backbones.p2t.base,
    neck=dict(in_channels=[64, 128, 320, 512]),
)
