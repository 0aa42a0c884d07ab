# Semantic FPN on ADE20K with STViT base.
_base_ = 'semfpn_stvit.py'

model = dict(
    backbone=dict(_base_.peers.stvit.base, norm_eval=False),
    neck=dict(in_channels=[96, 192, 384, 512]),
)
