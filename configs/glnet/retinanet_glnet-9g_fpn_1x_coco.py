# RetinaNet 1x on COCO with GLNet 9g.
_base_ = 'retinanet_glnet.py'

model = dict(
    backbone=_base_.peers.glnet['9g'],
    neck=dict(in_channels=[96, 192, 384, 768]),
)
