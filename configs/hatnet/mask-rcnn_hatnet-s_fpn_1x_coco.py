# Mask R-CNN 1x on COCO with HAT-Net small: 12 epochs, batch 16 (8 GPUs x 2 images), 1333x800.
_base_ = [
    '../_base_/hatnet.py',
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmhatnet.openmmlab.setup'], allow_failed_imports=False)

model = dict(
    backbone=dict(_base_.hatnet.small, _delete_=True),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4))
