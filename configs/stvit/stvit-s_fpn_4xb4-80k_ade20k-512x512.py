# Semantic FPN on ADE20K with STViT small: 80k iterations, batch 16 (4 GPUs x 4 images),
# 512x512.
# The authors do not publish their recipe. This one is HAT-Net's.
_base_ = ['../hatnet/hatnet-s_fpn_4xb4-80k_ade20k-512x512.py', '../_base_/other_backbones.py']

model = dict(
    backbone=dict(_base_.other_backbones.stvit.small, _delete_=True, norm_eval=False),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
# The backbone uses batch normalization throughout, and 4 images per GPU are few for its statistics.
sync_bn = 'torch'
