# DINO (4 scales) on COCO with HAT-Net small: 12 epochs, batch 16 (8 GPUs x 2 images).
_base_ = ['../_base_/hatnet.py', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py']
custom_imports = dict(imports=['mmhatnet.openmmlab.setup'], allow_failed_imports=False)

model = dict(
    backbone=dict(_base_.hatnet.small, _delete_=True, out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(in_channels=[128, 320, 512]),
)
# MMDetection's train.py scales the learning rate only if a config has `enable`.
auto_scale_lr = dict(enable=False)
