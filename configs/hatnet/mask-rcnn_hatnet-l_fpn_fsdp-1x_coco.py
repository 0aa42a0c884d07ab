# Mask R-CNN 1x on COCO with HAT-Net large. FSDP shards parameters, gradients and optimizer states
# over several GPUs: start it with tools/dist_train.sh.
#
# Each process sees flattened shards of the parameters, so two settings must not be added:
# - optim_wrapper.clip_grad: MMEngine computes the norm over the shards of one process alone.
# - paramwise_cfg.flat_decay_mult: it exempts one-dimensional parameters, and all shards are.
_base_ = 'mask-rcnn_hatnet-l_fpn_1x_coco.py'
custom_imports = dict(imports=['mmhatnet.openmmlab.setup', 'mmhatnet.openmmlab.fsdp'], allow_failed_imports=False)

runner_type = 'FlexibleRunner'
strategy = dict(
    type='ResumableFSDPStrategy',
    # Full checkpoints, as without FSDP: test them with mask-rcnn_hatnet-l_fpn_1x_coco.py.
    state_dict_cfg='full',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel', auto_wrap_policy=dict(type='wrap_hatnet_blocks')
    ),
)
