# Semantic FPN on ADE20K with Shunted base.
_base_ = 'semfpn_shunted.py'

model = dict(
    backbone=_base_.peers.shunted.base,
    neck=dict(in_channels=[64, 128, 256, 512]),
)
