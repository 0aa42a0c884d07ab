# Mask R-CNN 1x on COCO with GLNet 16g.
_base_ = 'mask-rcnn_glnet-4g_fpn_1x_coco.py'

model = dict(
    backbone=_base_.other_backbones.glnet['16g'],
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
