# ImageNet-1K with STViT large. The authors raise the drop path rate to 0.6 after 260
# epochs.
_base_ = 'stvit-small_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.4),
    head=dict(in_channels=640),
)
