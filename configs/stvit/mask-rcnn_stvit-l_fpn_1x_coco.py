# Mask R-CNN 1x on COCO with STViT large.
_base_ = 'maskrcnn_stvit.py'

model = dict(
    backbone=_base_.peers.stvit.large,
    neck=dict(in_channels=[96, 192, 448, 640]),
)
