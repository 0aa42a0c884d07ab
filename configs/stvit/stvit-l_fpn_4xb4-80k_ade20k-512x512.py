# Semantic FPN on ADE20K with STViT large.
_base_ = 'stvit-s_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(_base_.other_backbones.stvit.large, norm_eval=False),
    neck=dict(in_channels=[96, 192, 448, 640]),
)
