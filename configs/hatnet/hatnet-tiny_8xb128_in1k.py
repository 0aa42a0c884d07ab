# ImageNet-1K with HAT-Net tiny.
_base_ = 'hatnet-small_8xb128_in1k.py'

model = dict(
    backbone=dict(
        arch='tiny',
    ),
    head=dict(in_channels=384),
)
