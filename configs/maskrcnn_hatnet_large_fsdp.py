# Mask R-CNN 1x on COCO with HAT-Net large, its parameters and their gradients and optimizer states
# sharded over the GPUs. Needs several of them: tools/dist_train.sh with this config.
#
# Every process sees flat pieces of the parameters. Two settings must therefore not be added here:
# optim_wrapper.clip_grad (MMEngine measures the norm of one process's pieces alone), and
# paramwise_cfg.flat_decay_mult (it exempts one-dimensional parameters, which all pieces are).
_base_ = 'maskrcnn_hatnet_large.py'
custom_imports = dict(
    imports=['mmhatnet.openmmlab.setup', 'mmhatnet.openmmlab.fsdp'], allow_failed_imports=False
)

runner_type = 'FlexibleRunner'
strategy = dict(
    type='ResumableFSDPStrategy',
    # Whole checkpoints, as without FSDP: test them with maskrcnn_hatnet_large.py.
    state_dict_cfg='full',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel', auto_wrap_policy=dict(type='wrap_hatnet_blocks')
    ),
)
