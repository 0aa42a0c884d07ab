# ImageNet-1K with Shunted small: 300 epochs, batch 1024 (8 GPUs x 128 images), 224 px.
# The authors' recipe, which equals HAT-Net's. The base variant clips gradients.
_base_ = '../hatnet/hatnet-small_8xb128_in1k.py'

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
