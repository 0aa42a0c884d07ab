# ImageNet-1K with GLNet stl_paramslot.
_base_ = 'glnet-4g_16xb128_in1k.py'

model = dict(
    backbone=dict(arch='stl_paramslot', drop_path_rate=0.1),
    head=dict(in_channels=768),
)
