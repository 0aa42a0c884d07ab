# RetinaNet 1x on COCO with HAT-Net tiny.
_base_ = 'retinanet_hatnet.py'

model = dict(
    backbone=dict(
        arch='tiny',
        init_cfg=dict(
            checkpoint='https://github.com/yun-liu/HAT-Net/releases/download/v2.0/HAT-Net_Tiny.pth',
        ),
    ),
    neck=dict(in_channels=[48, 96, 240, 384]),
)
