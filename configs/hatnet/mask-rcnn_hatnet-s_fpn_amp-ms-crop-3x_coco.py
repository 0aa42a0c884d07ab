# Mask R-CNN 3x on COCO with HAT-Net small, multi-scale training and mixed precision: 36 epochs,
# batch 16 (8 GPUs x 2 images). The recipe is Swin-T's.
_base_ = ['../_base_/hatnet.py', 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py']
custom_imports = dict(imports=['mmhatnet.openmmlab.setup'], allow_failed_imports=False)

model = dict(
    backbone=dict(_base_.hatnet.small, _delete_=True, drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
