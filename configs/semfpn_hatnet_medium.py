# Semantic FPN 80k on ADE20K with HAT-Net medium.
_base_ = 'semfpn_hatnet.py'

model = dict(
    backbone=dict(
        arch='medium',
        # Not published for HAT-Net: the rate of P2T, by the same authors, for this size.
        drop_path_rate=0.3,
        init_cfg=dict(
            checkpoint='https://github.com/yun-liu/HAT-Net/releases/download/v2.0/HAT-Net_Medium.pth',
        ),
    ),
)
