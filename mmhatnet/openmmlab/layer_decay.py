"""Layer-wise decay of the learning rate, for backbones in any model of the three frameworks.

MMDetection's and MMSegmentation's own constructors know the layers of three backbones only, and
MMPretrain's works with classifiers only.
"""

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Lets the learning rate fall geometrically from the head to the first layer of the backbone.

    It is given to ``optim_wrapper`` as ``constructor``. Its ``paramwise_cfg`` has the settings of
    MMEngine's default constructor, whose learning rates are multiplied, and ``layer_decay_rate``
    (float): the factor from one layer to the one before it. The backbone is ``model.backbone`` and
    counts its layers with ``get_layer_depth``, as those of MMPretrain do; what follows it has the
    full learning rate.
    """

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Adds a group to ``params`` for each parameter of a module, called for the whole model."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # a part of the model, of which MMEngine calls this method as well
            return
        names = {id(param): name for name, param in module.named_parameters()}
        for group in params:
            (param,) = group['params']
            depth, num_layers = module.backbone.get_layer_depth(names[id(param)], 'backbone.')
            decay = self.paramwise_cfg['layer_decay_rate'] ** (num_layers - 1 - depth)
            group['lr'] = group.get('lr', self.base_lr) * decay
