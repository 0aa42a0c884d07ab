# ImageNet-1K with HAT-Net small: 300 epochs, batch 1024 (8 GPUs x 128 images), 224 px.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(
    imports=['mmhatnet.openmmlab.setup', 'mmhatnet.openmmlab.cls_head'], allow_failed_imports=False
)

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='HATNet',
        arch='small',
        out_indices=(3,),
        # HAT-Net's rate is not published. P2T, by the same authors, has this one at this size.
        drop_path_rate=0.1,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='DropoutLinearClsHead',
        num_classes=1000,
        in_channels=512,
        dropout_rate=0.2,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ),
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)],
    ),
)

# The inherited pipeline is the recipe's: RandAugment m9-mstd0.5-inc1 and random erasing 0.25. The
# recipe's color jitter of 0.4 has no effect, because timm skips it if RandAugment is on.
# MMPretrain's tools fill in the loaders' defaults. They are set here, so that any tool can run it.
loader = dict(collate_fn=dict(type='default_collate'), pin_memory=True, persistent_workers=True)
train_dataloader = dict(
    batch_size=128, sampler=dict(_delete_=True, type='RepeatAugSampler', shuffle=True), **loader
)
val_dataloader = dict(batch_size=128, **loader)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
auto_scale_lr = dict(enable=False, base_batch_size=1024)
