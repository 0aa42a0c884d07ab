# Semantic FPN on ADE20K with P2T tiny.
_base_ = 'semfpn_p2t.py'

model = dict(
    backbone=_base_.peers.p2t.tiny,
    neck=dict(in_channels=[48, 96, 240, 384]),
)
