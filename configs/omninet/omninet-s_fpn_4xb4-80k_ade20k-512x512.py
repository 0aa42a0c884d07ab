# Semantic FPN on ADE20K with OmniNet small: 80k iterations, batch 16 (4 GPUs x 4 images), 512x512.
# The authors publish neither a recipe nor weights. This is HAT-Net's recipe with ViTDet's neck and
# DeiT's drop path rate. README.md says how to start from your own weights.
_base_ = '../hatnet/hatnet-s_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(type='OmniNet', arch='small', drop_path_rate=0.1, _delete_=True),
    neck=dict(type='SimpleFeaturePyramid', in_channels=384, _delete_=True),
)
