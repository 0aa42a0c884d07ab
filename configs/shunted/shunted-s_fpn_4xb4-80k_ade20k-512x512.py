# Semantic FPN on ADE20K with Shunted small: 80k iterations, batch 16 (4 GPUs x 4 images),
# 512x512.
# The authors do not publish their recipe. This one is PVT's: HAT-Net's, tested at multiples of 32
# pixels.
_base_ = ['../hatnet/hatnet-s_fpn_4xb4-80k_ade20k-512x512.py', '../_base_/other_backbones.py']

model = dict(
    backbone=dict(_base_.other_backbones.shunted.small, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

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
