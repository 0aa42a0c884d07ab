# RetinaNet 1x on COCO with HAT-Net medium.
_base_ = 'retinanet_hatnet.py'

model = dict(
    backbone=_base_.hatnet.medium,
)
