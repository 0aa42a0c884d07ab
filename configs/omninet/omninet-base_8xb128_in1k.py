# ImageNet-1K with OmniNet base.
_base_ = 'omninet-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='base'), head=dict(in_channels=768))
