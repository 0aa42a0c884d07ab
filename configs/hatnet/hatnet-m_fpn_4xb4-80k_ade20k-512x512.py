# Semantic FPN 80k on ADE20K with HAT-Net medium.
_base_ = 'semfpn_hatnet.py'

model = dict(
    backbone=_base_.hatnet.medium,
)
