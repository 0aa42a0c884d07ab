# Semantic FPN on ADE20K with GLNet 16g.
_base_ = 'semfpn_glnet.py'

model = dict(
    backbone=dict(_base_.peers.glnet['16g'], norm_eval=False),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
