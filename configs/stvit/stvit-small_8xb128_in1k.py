# ImageNet-1K with STViT small: 300 epochs, batch 1024 (8 GPUs x 128 images), 224 px.
# The authors' recipe: HAT-Net's with an exponential moving average of the weights.
_base_ = '../hatnet/hatnet-small_8xb128_in1k.py'

model = dict(
    backbone=dict(
        type='STViT',
        arch='small',
        out_indices=(3,),
        drop_path_rate=0.1,
        _delete_=True,
    ),
    neck=None,
    head=dict(
        type='ConvLinearClsHead',
        num_classes=1000,
        in_channels=512,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        _delete_=True,
    ),
)
custom_hooks = [dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL')]
