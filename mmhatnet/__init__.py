"""HAT-Net backbone for MMDetection, MMSegmentation and MMPretrain."""

from mmhatnet.versions import check_versions

check_versions()  # before an unsupported version fails somewhere inside, for a less obvious reason

from mmhatnet.config_inheritance import config_path, register_config_packages
from mmhatnet.hatnet import HATNet
from mmhatnet.roi_layers import accept_any_memory_format

register_config_packages()
accept_any_memory_format()

__version__ = '0.1.0'
__all__ = ['HATNet', '__version__', 'config_path']
