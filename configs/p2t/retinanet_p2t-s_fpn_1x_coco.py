# RetinaNet 1x on COCO with P2T small: 12 epochs, batch 16 (8 GPUs x 2 images), 1333x800.
# The authors' recipe, which equals HAT-Net's.
_base_ = ['../hatnet/retinanet_hatnet-s_fpn_1x_coco.py', '../_base_/other_backbones.py']

model = dict(
    backbone=dict(_base_.other_backbones.p2t.small, _delete_=True),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
