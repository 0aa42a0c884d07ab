# ImageNet-1K with Shunted tiny.
_base_ = 'shunted-small_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1),
)
