# Mask2Former on ADE20K with HAT-Net small: 160k iterations, batch 16 (8 GPUs x 2 images), 512x512.

# Not 'mmseg::...': see hatnet-s_fpn_4xb4-80k_ade20k-512x512.py.
_base_ = [
    '../_base_/hatnet.py',
    f'{__import__("mmseg").__path__[0]}/.mim/configs/'
    'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
]
custom_imports = dict(
    imports=['mmhatnet.openmmlab.setup', 'mmdet.models'], allow_failed_imports=False
)

model = dict(
    backbone=dict(_base_.hatnet.small, _delete_=True, drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.hatnet.mask2former_norms))
