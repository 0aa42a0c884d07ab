# RetinaNet 1x on COCO with STViT small: 12 epochs, batch 16 (8 GPUs x 2 images), 1333x800.
# The authors do not publish their recipe. This one is HAT-Net's.
_base_ = ['../hatnet/retinanet_hatnet-s_fpn_1x_coco.py', '../_base_/other_backbones.py']

model = dict(
    backbone=dict(_base_.other_backbones.stvit.small, _delete_=True),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
