# The variants of the other backbones for detectors and segmentors. Their weights have no direct
# download links: fetch a file by hand from the page given here. Save it where init_cfg looks, or
# pass --cfg-options model.backbone.init_cfg.checkpoint=FILE. Training does not start without it,
# unless model.backbone.init_cfg=None asks for random weights.
networks = dict(
    # https://github.com/yuhuan-wu/P2T. The authors' rates for all tasks.
    p2t=('P2T', dict(tiny=0.1, small=0.1, base=0.3, large=0.3), {}),
    # https://github.com/OliverRensu/Shunted-Transformer. The rate of PVT v2, to which they refer.
    shunted=('ShuntedTransformer', dict(tiny=0.1, small=0.1, base=0.1), {}),
    # https://github.com/hhb072/STViT. The rates are not published; these are HAT-Net's at these
    # sizes. RMT, from the same laboratory, freezes batch normalization statistics in detection.
    stvit=('STViT', dict(small=0.1, base=0.3, large=0.3), dict(norm_eval=True)),
    # https://github.com/rayleizhu/GLMix. The rates are not published; these are ImageNet's.
    # BiFormer, by the same first author, freezes batch normalization statistics in detection.
    glnet=('GLNet', {'4g': 0.15, '9g': 0.3, '16g': 0.4, 'stl': 0.1}, dict(norm_eval=True)),
)
other_backbones = {
    name: {
        arch: dict(
            type=network,
            arch=arch,
            drop_path_rate=drop_path_rate,
            init_cfg=dict(type='Pretrained', checkpoint=f'checkpoints/{name}_{arch}.pth'),
            **settings,
        )
        for arch, drop_path_rate in rates.items()
    }
    for name, (network, rates, settings) in networks.items()
}
del networks
