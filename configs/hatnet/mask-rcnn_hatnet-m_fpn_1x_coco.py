# Mask R-CNN 1x on COCO with HAT-Net medium.
_base_ = 'maskrcnn_hatnet.py'

model = dict(
    backbone=_base_.hatnet.medium,
)
