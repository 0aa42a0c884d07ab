# RetinaNet 1x on COCO with Shunted small: 12 epochs, batch 16 (8 GPUs x 2 images), 1333x800.
# Not published; the authors name the recipe of PVT v2, which is HAT-Net's.
_base_ = ['../retinanet_hatnet.py', '../_base_/peers.py']

model = dict(
    backbone=dict(_base_.peers.shunted.small, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
