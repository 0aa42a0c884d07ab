# Mask R-CNN on synthetic data with P2T tiny. All networks share one recipe.
_base_ = 'maskrcnn_hatnet_toy.py'

model = dict(
    backbone=dict(type='P2T', arch='tiny', _delete_=True),
    neck=dict(in_channels=[48, 96, 240, 384]),
)
# No goals yet: they need results of several seeds.
goals = dict(_delete_=True)
