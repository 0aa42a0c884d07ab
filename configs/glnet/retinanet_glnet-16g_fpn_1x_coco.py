# RetinaNet 1x on COCO with GLNet 16g.
_base_ = 'retinanet_glnet.py'

model = dict(
    backbone=_base_.peers.glnet['16g'],
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
