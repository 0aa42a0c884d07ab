# Mask R-CNN 1x on COCO with HAT-Net tiny.
_base_ = 'mask-rcnn_hatnet-s_fpn_1x_coco.py'

model = dict(
    backbone=_base_.hatnet.tiny,
    neck=dict(in_channels=[48, 96, 240, 384]),
)
