# Mask R-CNN 1x on COCO with HAT-Net small, under a short name.
_base_ = 'hatnet/mask-rcnn_hatnet-s_fpn_1x_coco.py'
