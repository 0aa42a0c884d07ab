# Semantic FPN 80k on ADE20K with HAT-Net medium.
_base_ = 'hatnet-s_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=_base_.hatnet.medium,
)
