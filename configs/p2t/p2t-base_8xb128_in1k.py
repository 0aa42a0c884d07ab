# ImageNet-1K with P2T base.
_base_ = 'p2t-small_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3),
)
