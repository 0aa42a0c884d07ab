# Semantic FPN on ADE20K with GLNet stl.
_base_ = 'glnet-4g_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(_base_.other_backbones.glnet.stl, norm_eval=False),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
