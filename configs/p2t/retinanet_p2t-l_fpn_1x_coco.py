# RetinaNet 1x on COCO with P2T large.
_base_ = 'retinanet_p2t.py'

model = dict(
    backbone=_base_.peers.p2t.large,
    neck=dict(in_channels=[64, 128, 320, 640]),
)
