# Mask R-CNN 1x on COCO with P2T small: 12 epochs, batch 16 (8 GPUs x 2 images), 1333x800.
# The authors' recipe, which is HAT-Net's; with base and large they clip gradients.
_base_ = ['../maskrcnn_hatnet.py', '../_base_/peers.py']

model = dict(
    backbone=dict(_base_.peers.p2t.small, _delete_=True),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
