# Semantic FPN 80k on ADE20K with HAT-Net tiny.
_base_ = 'semfpn_hatnet.py'

model = dict(
    backbone=_base_.hatnet.tiny,
    neck=dict(in_channels=[48, 96, 240, 384]),
)
