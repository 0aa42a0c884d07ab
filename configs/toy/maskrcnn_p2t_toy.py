# The toy Mask R-CNN with P2T tiny: one recipe for all networks.
_base_ = '../toy/maskrcnn_hatnet_toy.py'

model = dict(
    backbone=dict(type='P2T', arch='tiny', _delete_=True),
    neck=dict(in_channels=[48, 96, 240, 384]),
)
# Nobody has found out yet what it reaches whatever the seed.
goals = dict(_delete_=True)
