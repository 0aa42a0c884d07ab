# ImageNet-1K with STViT base.
_base_ = 'stvit-small_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
)
