# ImageNet-1K with GLNet stl_paramslot.
_base_ = 'imagenet_glnet.py'

model = dict(
    backbone=dict(arch='stl_paramslot', drop_path_rate=0.1),
    head=dict(in_channels=768),
)
