# ImageNet-1K with OmniNet tiny.
_base_ = 'omninet-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='tiny'), head=dict(in_channels=192))
