# ImageNet-1K with HAT-Net large.
_base_ = 'imagenet_hatnet.py'

model = dict(
    backbone=dict(
        arch='large',
        # Not published for HAT-Net: the rate of P2T, by the same authors, for this size.
        drop_path_rate=0.3,
    ),
    head=dict(in_channels=640),
)
