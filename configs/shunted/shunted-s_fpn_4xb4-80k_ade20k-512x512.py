# Semantic FPN on ADE20K with Shunted small: 80k iterations, batch 16, 512x512.
# Not published; the recipe of PVT: HAT-Net's, tested in multiples of 32 pixels.
_base_ = ['../semfpn_hatnet.py', '../_base_/peers.py']

model = dict(
    backbone=dict(_base_.peers.shunted.small, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

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
