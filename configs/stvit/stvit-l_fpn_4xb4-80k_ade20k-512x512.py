# Semantic FPN on ADE20K with STViT large.
_base_ = 'semfpn_stvit.py'

model = dict(
    backbone=dict(_base_.peers.stvit.large, norm_eval=False),
    neck=dict(in_channels=[96, 192, 448, 640]),
)
