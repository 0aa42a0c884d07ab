# RetinaNet 1x on COCO with STViT base.
_base_ = 'retinanet_stvit.py'

model = dict(
    backbone=_base_.peers.stvit.base,
    neck=dict(in_channels=[96, 192, 384, 512]),
)
