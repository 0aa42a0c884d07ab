# Mask R-CNN 1x on COCO with GLNet 16g.
_base_ = 'maskrcnn_glnet.py'

model = dict(
    backbone=_base_.peers.glnet['16g'],
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
