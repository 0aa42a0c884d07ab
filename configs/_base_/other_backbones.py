# The variants of the other networks as backbones of detectors and segmentors. None of their weights
# can be downloaded by address: fetch a file by hand from the page that is named here. Put it where
# init_cfg looks, or name it with --cfg-options model.backbone.init_cfg.checkpoint=FILE. Where there
# is none training does not start, unless model.backbone.init_cfg=None asks for random weights.
networks = dict(
    # https://github.com/yuhuan-wu/P2T. The authors' rates, of all jobs.
    p2t=('P2T', dict(tiny=0.1, small=0.1, base=0.3, large=0.3), {}),
    # https://github.com/OliverRensu/Shunted-Transformer. The rate of PVT v2, whose code they name.
    shunted=('ShuntedTransformer', dict(tiny=0.1, small=0.1, base=0.1), {}),
    # https://github.com/hhb072/STViT. Not published: HAT-Net's rates for these sizes. RMT, from the
    # same laboratory, keeps the statistics of batch normalisation in detection.
    stvit=('STViT', dict(small=0.1, base=0.3, large=0.3), dict(norm_eval=True)),
    # https://github.com/rayleizhu/GLMix. Not published: the rates of ImageNet. BiFormer, by the
    # same first author, keeps the statistics of batch normalisation in detection.
    glnet=('GLNet', {'4g': 0.15, '9g': 0.3, '16g': 0.4, 'stl': 0.1}, dict(norm_eval=True)),
)
peers = {
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
