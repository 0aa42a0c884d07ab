# Mask R-CNN 3x on COCO with HAT-Net small, multi-scale training and mixed precision: 36 epochs,
# batch 16 (8 GPUs x 2 images). The recipe is Swin-T's.
_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'
custom_imports = dict(imports=['mmhatnet'], allow_failed_imports=False)

pretrained = 'https://github.com/yun-liu/HAT-Net/releases/download/v2.0/HAT-Net_Small.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='HATNet',
        arch='small',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
