# Semantic FPN on ADE20K with P2T large.
_base_ = 'semfpn_p2t.py'

model = dict(
    backbone=_base_.peers.p2t.large,
    neck=dict(in_channels=[64, 128, 320, 640]),
)
optim_wrapper = dict(clip_grad=dict(_delete_=True, max_norm=35, norm_type=2))
