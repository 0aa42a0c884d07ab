# ImageNet-1K with HAT-Net large.
_base_ = 'hatnet-small_8xb128_in1k.py'

model = dict(
    backbone=dict(
        arch='large',
        # HAT-Net's rate is not published. P2T, by the same authors, has this one at this size.
        drop_path_rate=0.3,
    ),
    head=dict(in_channels=640),
)
