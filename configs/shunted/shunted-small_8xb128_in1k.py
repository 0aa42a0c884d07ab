# ImageNet-1K with Shunted small: 300 epochs, batch 1024, 224 px.
# The authors' recipe: HAT-Net's; with base they clip gradients.
_base_ = '../imagenet_hatnet.py'

model = dict(
    backbone=dict(
        type='ShuntedTransformer',
        arch='small',
        out_indices=(3,),
        drop_path_rate=0.2,
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
