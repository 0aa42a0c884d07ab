# RetinaNet 1x on COCO with Shunted base.
_base_ = 'retinanet_shunted-s_fpn_1x_coco.py'

model = dict(
    backbone=_base_.other_backbones.shunted.base,
    neck=dict(in_channels=[64, 128, 256, 512]),
)
