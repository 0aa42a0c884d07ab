# The toy Mask R-CNN with Shunted tiny: one recipe for all networks.
_base_ = '../toy/maskrcnn_hatnet_toy.py'

model = dict(
    backbone=dict(type='ShuntedTransformer', arch='tiny', _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
# Nobody has found out yet what it reaches whatever the seed.
goals = dict(_delete_=True)
