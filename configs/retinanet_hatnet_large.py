# RetinaNet 1x on COCO with HAT-Net large.
_base_ = 'retinanet_hatnet.py'

model = dict(
    backbone=dict(
        arch='large',
        # Not published for HAT-Net: the rate of P2T, by the same authors, for this size.
        drop_path_rate=0.3,
        init_cfg=dict(
            checkpoint='https://github.com/yun-liu/HAT-Net/releases/download/v2.0/HAT-Net_Large.pth',
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 640]),
)
