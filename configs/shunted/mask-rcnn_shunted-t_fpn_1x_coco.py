# Mask R-CNN 1x on COCO with Shunted tiny.
_base_ = 'mask-rcnn_shunted-s_fpn_1x_coco.py'

model = dict(
    backbone=_base_.other_backbones.shunted.tiny,
    neck=dict(in_channels=[64, 128, 256, 512]),
)
