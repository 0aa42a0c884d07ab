# Mask R-CNN 1x on COCO with OmniNet tiny.
_base_ = 'mask-rcnn_omninet-s_fpn_1x_coco.py'

model = dict(backbone=dict(arch='tiny'), neck=dict(in_channels=192))
