# Mask R-CNN 1x on COCO with HAT-Net large.
_base_ = 'mask-rcnn_hatnet-s_fpn_1x_coco.py'

model = dict(
    backbone=_base_.hatnet.large,
    neck=dict(in_channels=[64, 128, 320, 640]),
)
