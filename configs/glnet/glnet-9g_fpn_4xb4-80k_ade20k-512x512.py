# Semantic FPN on ADE20K with GLNet 9g.
_base_ = 'semfpn_glnet.py'

model = dict(
    backbone=dict(_base_.peers.glnet['9g'], norm_eval=False),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
