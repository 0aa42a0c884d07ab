# ImageNet-1K with GLNet 4g_tklb.
# The second classifier of token labelling, whose training with labels of positions is not here:
# for the published weights.
_base_ = 'imagenet_glnet.py'

model = dict(
    backbone=dict(arch='4g_tklb', drop_path_rate=0.1),
    head=dict(in_channels=512, dense=True),
)
