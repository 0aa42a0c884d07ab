# Mask R-CNN 1x on COCO with OmniNet base.
_base_ = 'mask-rcnn_omninet-s_fpn_1x_coco.py'

model = dict(backbone=dict(arch='base'), neck=dict(in_channels=768))
