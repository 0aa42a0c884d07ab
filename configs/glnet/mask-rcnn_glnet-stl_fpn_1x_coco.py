# Mask R-CNN 1x on COCO with GLNet stl.
_base_ = 'mask-rcnn_glnet-4g_fpn_1x_coco.py'

model = dict(
    backbone=_base_.other_backbones.glnet.stl,
    neck=dict(in_channels=[96, 192, 384, 768]),
)
