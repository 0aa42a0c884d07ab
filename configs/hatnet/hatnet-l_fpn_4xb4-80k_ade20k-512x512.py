# Semantic FPN 80k on ADE20K with HAT-Net large.
_base_ = 'hatnet-s_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=_base_.hatnet.large,
    neck=dict(in_channels=[64, 128, 320, 640]),
)
