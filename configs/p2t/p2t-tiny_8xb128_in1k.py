# ImageNet-1K with P2T tiny.
_base_ = 'p2t-small_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1),
    head=dict(in_channels=384),
)
