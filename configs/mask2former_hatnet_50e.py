# Mask2Former for instance segmentation on COCO with HAT-Net small: 50 epochs of large-scale jitter
# at 1024x1024, batch 16 (8 GPUs x 2 images).
_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
custom_imports = dict(imports=['mmhatnet'], allow_failed_imports=False)

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
    panoptic_head=dict(in_channels=[64, 128, 320, 512]),
)

# The inherited key 'backbone' takes the normalisation layers of the backbone from the rule that
# exempts all others from weight decay. Of two keys that fit, the longer one counts.
norms = ('stem.norm', 'downsample.norm', 'attn.norm', 'attn.global_norm', 'attn.pooled_norm')
norms += ('.mlp.norm', '.mlp.out_norm')
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={name: dict(lr_mult=0.1, decay_mult=0.0) for name in norms})
)

# The inherited base is one for panoptic segmentation, whose folder of maps is not needed here.
train_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='train2017/')))
val_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='val2017/')))
test_dataloader = val_dataloader
