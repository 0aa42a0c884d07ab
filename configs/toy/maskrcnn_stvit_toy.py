# Mask R-CNN on synthetic data with STViT small. All networks share one recipe.
_base_ = 'maskrcnn_hatnet_toy.py'

model = dict(
    backbone=dict(type='STViT', arch='small', _delete_=True),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
# No goals yet: they need results of several seeds.
goals = dict(_delete_=True)
