# ImageNet-1K with HAT-Net tiny.
_base_ = 'imagenet_hatnet.py'

model = dict(
    backbone=dict(
        arch='tiny',
    ),
    head=dict(in_channels=384),
)
