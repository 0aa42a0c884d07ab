# Semantic FPN on ADE20K with Shunted base.
_base_ = 'shunted-s_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=_base_.other_backbones.shunted.base,
    neck=dict(in_channels=[64, 128, 256, 512]),
)
