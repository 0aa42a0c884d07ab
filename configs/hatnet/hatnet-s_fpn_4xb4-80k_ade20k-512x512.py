# Semantic FPN on ADE20K with HAT-Net small: 80k iterations, batch 16 (4 GPUs x 4 images), 512x512.

# Not 'mmseg::...', because MMEngine would look for a distribution named mmsegmentation, and OneDL's
# has another name.
_base_ = ['../_base_/hatnet.py'] + [
    f'{__import__("mmseg").__path__[0]}/.mim/configs/_base_/{part}.py'
    for part in ('models/fpn_r50', 'datasets/ade20k', 'schedules/schedule_80k', 'default_runtime')
]
custom_imports = dict(imports=['mmhatnet.openmmlab.setup'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_base_.hatnet.small, _delete_=True),
    neck=dict(in_channels=[64, 128, 320, 512]),
    decode_head=dict(num_classes=150),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4))
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=80000, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
