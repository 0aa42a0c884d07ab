# Mask R-CNN 1x on COCO with Shunted small: 12 epochs, batch 16 (8 GPUs x 2 images), 1333x800.
# The authors do not publish their recipe and refer to PVT v2's: HAT-Net's at twice the learning
# rate.
_base_ = ['../hatnet/mask-rcnn_hatnet-s_fpn_1x_coco.py', '../_base_/other_backbones.py']

model = dict(
    backbone=dict(_base_.other_backbones.shunted.small, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
