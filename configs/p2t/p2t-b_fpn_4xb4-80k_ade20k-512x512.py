# Semantic FPN on ADE20K with P2T base.
_base_ = 'p2t-s_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=_base_.other_backbones.p2t.base,
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(clip_grad=dict(_delete_=True, max_norm=35, norm_type=2))
