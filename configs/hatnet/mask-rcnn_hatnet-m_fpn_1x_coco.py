# Mask R-CNN 1x on COCO with HAT-Net medium.
_base_ = 'mask-rcnn_hatnet-s_fpn_1x_coco.py'

model = dict(
    backbone=_base_.hatnet.medium,
)
