# ImageNet-1K with GLNet 16g.
_base_ = 'imagenet_glnet.py'

model = dict(
    backbone=dict(arch='16g', drop_path_rate=0.4),
    head=dict(in_channels=1024),
)
