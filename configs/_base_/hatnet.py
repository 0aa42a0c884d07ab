# HAT-Net's variants as backbones of detectors and segmentors, with the published weights, and the
# optimizer rules for their normalization layers in Mask2Former.
releases = 'https://github.com/yun-liu/HAT-Net/releases/download/v2.0'
hatnet = {
    arch: dict(
        type='HATNet',
        arch=arch,
        # HAT-Net's rates are not published. P2T, by the same authors, has these at these sizes.
        drop_path_rate=drop_path_rate,
        init_cfg=dict(type='Pretrained', checkpoint=f'{releases}/HAT-Net_{arch.title()}.pth'),
    )
    for arch, drop_path_rate in dict(tiny=0.1, small=0.1, medium=0.3, large=0.3).items()
}
# Mask2Former exempts normalization layers from weight decay, but its key 'backbone' overrides that
# for the backbone. Longer keys take precedence, so these restore the exemption.
norms = ('stem.norm', 'downsample.norm', 'attn.norm', 'attn.global_norm', 'attn.pooled_norm')
norms += ('.mlp.norm', '.mlp.out_norm')
hatnet['mask2former_norms'] = {name: dict(lr_mult=0.1, decay_mult=0.0) for name in norms}
del releases, norms
