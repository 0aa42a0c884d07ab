# ImageNet-1K with P2T small: 300 epochs, batch 1024 (8 GPUs x 128 images), 224 px.
# The authors' recipe: HAT-Net's with 20 warm-up epochs.
_base_ = '../hatnet/hatnet-small_8xb128_in1k.py'

model = dict(
    backbone=dict(
        type='P2T',
        arch='small',
        out_indices=(3,),
        drop_path_rate=0.1,
        _delete_=True,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=512,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        _delete_=True,
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300),
]
