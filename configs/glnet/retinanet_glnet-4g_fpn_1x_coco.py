# RetinaNet 1x on COCO with GLNet 4g: 12 epochs, batch 16 (8 GPUs x 2 images), 1333x800.
# The authors' recipe is not published: HAT-Net's.
_base_ = ['../retinanet_hatnet.py', '../_base_/peers.py']

model = dict(
    backbone=dict(_base_.peers.glnet['4g'], _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
