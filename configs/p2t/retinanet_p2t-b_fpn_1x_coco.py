# RetinaNet 1x on COCO with P2T base.
_base_ = 'retinanet_p2t.py'

model = dict(
    backbone=_base_.peers.p2t.base,
    neck=dict(in_channels=[64, 128, 320, 512]),
)
