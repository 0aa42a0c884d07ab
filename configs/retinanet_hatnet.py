# RetinaNet 1x on COCO with HAT-Net small, under a short name.
_base_ = 'hatnet/retinanet_hatnet-s_fpn_1x_coco.py'
