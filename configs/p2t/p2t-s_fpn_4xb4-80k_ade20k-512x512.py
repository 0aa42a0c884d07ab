# Semantic FPN on ADE20K with P2T small: 80k iterations, batch 16, 512x512.
# The authors' recipe: HAT-Net's down to a rate of 1e-6, tested in multiples of 32 pixels.
_base_ = ['../semfpn_hatnet.py', '../_base_/peers.py']

model = dict(
    backbone=dict(_base_.peers.p2t.small, _delete_=True),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
param_scheduler = [dict(type='PolyLR', eta_min=1e-6, power=0.9, begin=0, end=80000, by_epoch=False)]

# The published figures are of images whose sides are stretched to multiples of 32.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
