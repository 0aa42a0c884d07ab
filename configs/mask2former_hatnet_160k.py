# Mask2Former on ADE20K with HAT-Net small: 160k iterations, batch 16 (8 GPUs x 2 images), 512x512.

# For 'mmseg::...' see semfpn_hatnet.py.
_base_ = (
    f'{__import__("mmseg").__path__[0]}/.mim/configs/'
    'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'
)
custom_imports = dict(imports=['mmdet.models', 'mmhatnet'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='HATNet',
        arch='small',
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/yun-liu/HAT-Net/releases/download/v2.0/HAT-Net_Small.pth',
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
)

# The inherited key 'backbone' takes the normalisation layers of the backbone from the rule that
# exempts all others from weight decay. Of two keys that fit, the longer one counts.
norms = ('stem.norm', 'downsample.norm', 'attn.norm', 'attn.global_norm', 'attn.pooled_norm')
norms += ('.mlp.norm', '.mlp.out_norm')
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={name: dict(lr_mult=0.1, decay_mult=0.0) for name in norms})
)
