# ImageNet-1K with GLNet 16g.
_base_ = 'glnet-4g_16xb128_in1k.py'

model = dict(
    backbone=dict(arch='16g', drop_path_rate=0.4),
    head=dict(in_channels=1024),
)
