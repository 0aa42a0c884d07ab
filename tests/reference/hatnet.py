"""HAT-Net: the package has its reference implementation, which is built here from explicit sizes.

``docs/networks/hatnet.md`` states them.
"""

from mmhatnet.backbones.hatnet_reference import ReferenceHATNet

COMMON = dict(
    mlp_ratios=(8, 8, 4, 4),
    windows=(8, 7, 7, None),
    poolings=(8, 4, 2, None),
)
VARIANTS = {
    'tiny': dict(
        embed_dims=(48, 96, 240, 384), head_dim=48, depths=(2, 2, 6, 3), kernel_sizes=(3, 3, 3, 3)
    ),
    'small': dict(
        embed_dims=(64, 128, 320, 512), head_dim=64, depths=(2, 3, 8, 3), kernel_sizes=(3, 3, 3, 3)
    ),
    'medium': dict(
        embed_dims=(64, 128, 320, 512), head_dim=64, depths=(3, 6, 18, 3), kernel_sizes=(5, 3, 5, 3)
    ),
    'large': dict(
        embed_dims=(64, 128, 320, 640), head_dim=64, depths=(3, 8, 27, 3), kernel_sizes=(3, 3, 3, 3)
    ),
}


def build(variant):
    return ReferenceHATNet(COMMON | VARIANTS[variant], num_classes=1000)
