# Semantic FPN 80k on ADE20K with HAT-Net large.
_base_ = 'semfpn_hatnet.py'

model = dict(
    backbone=_base_.hatnet.large,
    neck=dict(in_channels=[64, 128, 320, 640]),
)
