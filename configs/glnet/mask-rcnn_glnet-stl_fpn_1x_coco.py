# Mask R-CNN 1x on COCO with GLNet stl.
_base_ = 'maskrcnn_glnet.py'

model = dict(
    backbone=_base_.peers.glnet.stl,
    neck=dict(in_channels=[96, 192, 384, 768]),
)
