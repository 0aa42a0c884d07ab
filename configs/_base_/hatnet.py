# The variants as backbones of detectors and segmentors, with the weights that the authors publish;
# and the rules by which Mask2Former's optimizer treats their normalisation layers.
releases = 'https://github.com/yun-liu/HAT-Net/releases/download/v2.0'
hatnet = {
    arch: dict(
        type='HATNet',
        arch=arch,
        # Not published for HAT-Net: the rates of P2T, by the same authors, for these sizes.
        drop_path_rate=drop_path_rate,
        init_cfg=dict(type='Pretrained', checkpoint=f'{releases}/HAT-Net_{arch.title()}.pth'),
    )
    for arch, drop_path_rate in dict(tiny=0.1, small=0.1, medium=0.3, large=0.3).items()
}
# Mask2Former's key 'backbone' takes the normalisation layers of the backbone from the rule that
# exempts all others from weight decay. Of two keys that fit, the longer one counts.
norms = ('stem.norm', 'downsample.norm', 'attn.norm', 'attn.global_norm', 'attn.pooled_norm')
norms += ('.mlp.norm', '.mlp.out_norm')
hatnet['mask2former_norms'] = {name: dict(lr_mult=0.1, decay_mult=0.0) for name in norms}
del releases, norms
