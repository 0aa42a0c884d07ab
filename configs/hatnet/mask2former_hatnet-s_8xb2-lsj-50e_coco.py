# Mask2Former for instance segmentation on COCO with HAT-Net small: 50 epochs of large-scale jitter
# at 1024x1024, batch 16 (8 GPUs x 2 images).
_base_ = ['../_base_/hatnet.py', 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py']
custom_imports = dict(imports=['mmhatnet.openmmlab.setup'], allow_failed_imports=False)

model = dict(
    backbone=dict(_base_.hatnet.small, _delete_=True, drop_path_rate=0.3),
    panoptic_head=dict(in_channels=[64, 128, 320, 512]),
)

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.hatnet.mask2former_norms))

# The inherited config is for panoptic segmentation. Its folder of segmentation maps is not needed.
train_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='train2017/')))
val_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='val2017/')))
test_dataloader = val_dataloader
