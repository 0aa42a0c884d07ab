# Mask R-CNN 1x on COCO with STViT base.
_base_ = 'maskrcnn_stvit.py'

model = dict(
    backbone=_base_.peers.stvit.base,
    neck=dict(in_channels=[96, 192, 384, 512]),
)
