# Mask R-CNN 1x on COCO with OmniNet small: 12 epochs, batch 16 (8 GPUs x 2 images), 1333x800.
# The authors publish neither a recipe nor weights. This is HAT-Net's recipe with ViTDet's neck and
# DeiT's drop path rate. README.md says how to start from your own weights.
_base_ = '../hatnet/mask-rcnn_hatnet-s_fpn_1x_coco.py'

model = dict(
    backbone=dict(type='OmniNet', arch='small', drop_path_rate=0.1, _delete_=True),
    neck=dict(type='SimpleFeaturePyramid', in_channels=384, num_outs=5, _delete_=True),
)
