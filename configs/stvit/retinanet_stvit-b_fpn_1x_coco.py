# RetinaNet 1x on COCO with STViT base.
_base_ = 'retinanet_stvit-s_fpn_1x_coco.py'

model = dict(
    backbone=_base_.other_backbones.stvit.base,
    neck=dict(in_channels=[96, 192, 384, 512]),
)
