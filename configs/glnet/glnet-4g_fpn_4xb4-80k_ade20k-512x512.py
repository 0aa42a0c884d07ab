# Semantic FPN on ADE20K with GLNet 4g: 80k iterations, batch 16, 512x512.
# The authors' recipe is not published: HAT-Net's.
_base_ = ['../semfpn_hatnet.py', '../_base_/peers.py']

model = dict(
    backbone=dict(_base_.peers.glnet['4g'], _delete_=True, norm_eval=False),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
# Batch normalisation is all over the backbone, and 4 images are few for its statistics.
sync_bn = 'torch'
