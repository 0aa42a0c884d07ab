# DINO (4 scales) on COCO with HAT-Net small: 12 epochs, batch 16 (8 GPUs x 2 images).
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
custom_imports = dict(imports=['mmhatnet'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='HATNet',
        arch='small',
        out_indices=(1, 2, 3),
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/yun-liu/HAT-Net/releases/download/v2.0/HAT-Net_Small.pth',
        ),
    ),
    neck=dict(in_channels=[128, 320, 512]),
)
# MMDetection's own tool scales the learning rate only where a config has `enable`.
auto_scale_lr = dict(enable=False)
