# Mask R-CNN 1x on COCO with Shunted tiny.
_base_ = 'maskrcnn_shunted.py'

model = dict(
    backbone=_base_.peers.shunted.tiny,
    neck=dict(in_channels=[64, 128, 256, 512]),
)
