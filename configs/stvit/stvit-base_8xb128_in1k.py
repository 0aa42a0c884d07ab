# ImageNet-1K with STViT base.
_base_ = 'imagenet_stvit.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
)
