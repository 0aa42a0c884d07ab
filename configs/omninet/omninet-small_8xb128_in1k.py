# ImageNet-1K with OmniNet small: 300 epochs, batch 1024 (8 GPUs x 128 images), 224 px.
# The authors publish no recipe. This one is DeiT's: HAT-Net's with an exponential moving average of
# the weights and without dropout. The classifier starts at zero, as in the published code.
_base_ = '../hatnet/hatnet-small_8xb128_in1k.py'

model = dict(
    backbone=dict(
        type='OmniNet',
        arch='small',
        drop_path_rate=0.1,
        _delete_=True,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='Constant', layer='Linear', val=0.0, bias=0.0),
        _delete_=True,
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'.stem.position': dict(decay_mult=0.0)}))
custom_hooks = [dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL')]
