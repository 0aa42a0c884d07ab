# Semantic FPN on ADE20K with OmniNet base.
_base_ = 'omninet-s_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(backbone=dict(arch='base'), neck=dict(in_channels=768))
