# Mask R-CNN 1x on COCO with P2T base.
_base_ = 'maskrcnn_p2t.py'

model = dict(
    backbone=_base_.peers.p2t.base,
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(clip_grad=dict(max_norm=10, norm_type=2))
