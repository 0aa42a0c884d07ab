# RetinaNet 1x on COCO with HAT-Net small: 12 epochs, batch 16 (8 GPUs x 2 images), 1333x800.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmhatnet'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='HATNet',
        arch='small',
        # Not published for HAT-Net: the rate of P2T, by the same authors, for this size.
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/yun-liu/HAT-Net/releases/download/v2.0/HAT-Net_Small.pth',
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4))
