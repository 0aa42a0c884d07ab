# ImageNet-1K with Shunted base.
_base_ = 'shunted-small_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3),
)
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
