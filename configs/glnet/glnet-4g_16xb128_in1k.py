# ImageNet-1K with GLNet 4g: 300 epochs, batch 2048 (16 GPUs x 128 images), 224 px.
# The authors' recipe: HAT-Net's with twice the batch size and learning rate, gradient clipping and
# an exponential moving average of the weights.
_base_ = '../hatnet/hatnet-small_8xb128_in1k.py'

model = dict(
    backbone=dict(
        type='GLNet',
        arch='4g',
        out_indices=(3,),
        drop_path_rate=0.15,
        _delete_=True,
    ),
    neck=None,
    head=dict(
        type='NormLinearClsHead',
        num_classes=1000,
        in_channels=512,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        _delete_=True,
    ),
)
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]
auto_scale_lr = dict(enable=False, base_batch_size=2048)
