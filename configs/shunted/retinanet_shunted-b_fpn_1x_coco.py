# RetinaNet 1x on COCO with Shunted base.
_base_ = 'retinanet_shunted.py'

model = dict(
    backbone=_base_.peers.shunted.base,
    neck=dict(in_channels=[64, 128, 256, 512]),
)
