# ImageNet-1K with STViT large. The authors train with 0.6 after 260 epochs.
_base_ = 'imagenet_stvit.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.4),
    head=dict(in_channels=640),
)
