# Cascade Mask R-CNN 3x on COCO with HAT-Net small, multi-scale training and mixed precision:
# 36 epochs, batch 16 (8 GPUs x 2 images). The heads are Swin's and ConvNeXt's (four
# convolutions, SyncBN, GIoU loss); the optimizer is Swin's.
_base_ = [
    '../_base_/hatnet.py',
    'mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py',
]
custom_imports = dict(imports=['mmhatnet.openmmlab.setup'], allow_failed_imports=False)

model = dict(
    backbone=dict(_base_.hatnet.small, _delete_=True, drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0),
    optimizer=dict(lr=1e-4),
)
