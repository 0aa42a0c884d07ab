# ImageNet-1K with P2T base.
_base_ = 'imagenet_p2t.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3),
)
