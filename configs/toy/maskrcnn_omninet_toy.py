# Mask R-CNN on synthetic data with OmniNet tiny. All networks share one recipe.
_base_ = 'maskrcnn_hatnet_toy.py'

model = dict(
    backbone=dict(type='OmniNet', arch='tiny', _delete_=True),
    neck=dict(
        type='SimpleFeaturePyramid', in_channels=192, out_channels=64, num_outs=4, _delete_=True
    ),
)
# No goals yet: they need results of several seeds.
goals = dict(_delete_=True)
