# UPerNet on ADE20K with HAT-Net small, layer-wise decay of the learning rate and mixed precision:
# 160k iterations, batch 16 (8 GPUs x 2 images), 512x512. The recipe is ConvNeXt's, with a decay
# per block as in BEiT.

# Not 'mmseg::...': see hatnet-s_fpn_4xb4-80k_ade20k-512x512.py.
_base_ = [
    '../_base_/hatnet.py',
    f'{__import__("mmseg").__path__[0]}/.mim/configs/'
    'convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
]
custom_imports = dict(
    imports=['mmhatnet.openmmlab.setup', 'mmhatnet.openmmlab.layer_decay'],
    allow_failed_imports=False,
)

model = dict(
    backbone=dict(_base_.hatnet.small, _delete_=True, drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.9,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
