# ImageNet-1K with GLNet 4g_tklb.
# Adds the dense classifier of token labeling, so that the published weights load. Training with
# token labels is not implemented.
_base_ = 'glnet-4g_16xb128_in1k.py'

model = dict(
    backbone=dict(arch='4g_tklb', drop_path_rate=0.1),
    head=dict(in_channels=512, dense=True),
)
