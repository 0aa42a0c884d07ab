# Semantic FPN on ADE20K with P2T tiny.
_base_ = 'p2t-s_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=_base_.other_backbones.p2t.tiny,
    neck=dict(in_channels=[48, 96, 240, 384]),
)
