# Semantic FPN on ADE20K with P2T small: 80k iterations, batch 16 (4 GPUs x 4 images),
# 512x512.
# The authors' recipe: HAT-Net's with a final learning rate of 1e-6, tested at multiples of 32
# pixels.
_base_ = ['../hatnet/hatnet-s_fpn_4xb4-80k_ade20k-512x512.py', '../_base_/other_backbones.py']

model = dict(
    backbone=dict(_base_.other_backbones.p2t.small, _delete_=True),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
param_scheduler = [dict(type='PolyLR', eta_min=1e-6, power=0.9, begin=0, end=80000, by_epoch=False)]

# The published results are for images resized to sides that are multiples of 32.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
