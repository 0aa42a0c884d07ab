# Semantic FPN on ADE20K with Shunted tiny.
_base_ = 'semfpn_shunted.py'

model = dict(
    backbone=_base_.peers.shunted.tiny,
    neck=dict(in_channels=[64, 128, 256, 512]),
)
