"""HAT-Net and comparable backbones for MMDetection, MMSegmentation and MMPretrain.

Importing the package needs PyTorch and MMEngine alone. It registers the backbones, an
initializer of one of them and a neck in MMEngine's root registries and changes nothing else.
``mmhatnet.openmmlab.patches.apply_patches`` corrects mmcv and MMEngine. The command-line tools and
the configs of this package call it.
"""

from mmhatnet.openmmlab.versions import check_versions

check_versions()  # otherwise an unsupported version fails later, with a less obvious message

from mmhatnet.backbones.glnet import GLNet
from mmhatnet.backbones.hatnet import HATNet
from mmhatnet.backbones.omninet import OmniNet
from mmhatnet.backbones.p2t import P2T
from mmhatnet.backbones.shunted import ShuntedTransformer
from mmhatnet.backbones.stvit import STViT
from mmhatnet.openmmlab.config_inheritance import config_path
from mmhatnet.openmmlab.simple_feature_pyramid import SimpleFeaturePyramid

__version__ = '0.1.0'
__all__ = [
    'P2T',
    'GLNet',
    'HATNet',
    'OmniNet',
    'STViT',
    'ShuntedTransformer',
    'SimpleFeaturePyramid',
    '__version__',
    'config_path',
]
