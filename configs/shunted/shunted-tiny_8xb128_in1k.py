# ImageNet-1K with Shunted tiny.
_base_ = 'imagenet_shunted.py'

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1),
)
