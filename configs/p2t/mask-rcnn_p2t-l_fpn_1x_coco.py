# Mask R-CNN 1x on COCO with P2T large.
_base_ = 'mask-rcnn_p2t-s_fpn_1x_coco.py'

model = dict(
    backbone=_base_.other_backbones.p2t.large,
    neck=dict(in_channels=[64, 128, 320, 640]),
)
optim_wrapper = dict(clip_grad=dict(max_norm=10, norm_type=2))
