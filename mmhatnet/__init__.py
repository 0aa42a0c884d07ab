"""HAT-Net and its peers as backbones for MMDetection, MMSegmentation and MMPretrain."""

from mmhatnet.openmmlab.versions import check_versions

check_versions()  # before an unsupported version fails somewhere inside, for a less obvious reason

from mmhatnet.backbones.glnet import GLNet
from mmhatnet.backbones.hatnet import HATNet
from mmhatnet.backbones.p2t import P2T
from mmhatnet.backbones.shunted import ShuntedTransformer
from mmhatnet.backbones.stvit import STViT
from mmhatnet.openmmlab.config_inheritance import config_path, register_config_packages
from mmhatnet.openmmlab.operators import provide
from mmhatnet.openmmlab.roi_layers import accept_any_memory_format

register_config_packages()
provide()
accept_any_memory_format()

__version__ = '0.1.0'
__all__ = [
    'GLNet',
    'HATNet',
    'P2T',
    'STViT',
    'ShuntedTransformer',
    '__version__',
    'config_path',
]
