"""The module that configs name in ``custom_imports``. Importing it calls ``apply_patches``.

The import registers the backbones as well, because it imports ``mmhatnet`` first.
"""

from mmhatnet.openmmlab.patches import apply_patches

apply_patches()
