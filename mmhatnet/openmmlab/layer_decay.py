"""Layer-wise decay of the learning rate for backbones in any model of the three frameworks.

The constructors of MMDetection and MMSegmentation know the layers of three backbones only, and
MMPretrain's works for classifiers only.
"""

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Decreases the learning rate geometrically from the head to the first layer of the backbone.

    Set it as the ``constructor`` of ``optim_wrapper``. ``paramwise_cfg`` takes the settings of
    MMEngine's default constructor, whose learning rates are multiplied, and ``layer_decay_rate``
    (float), the factor from one layer to the one before it. ``model.backbone`` counts its layers in
    ``get_layer_depth``, as MMPretrain's backbones do. The other parts of the model have the full
    learning rate.
    """

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Adds a group to ``params`` for each parameter of a module, here the whole model."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # MMEngine also calls this method for each part of the model
            return
        names = {id(param): name for name, param in module.named_parameters()}
        for group in params:
            (param,) = group['params']
            depth, num_layers = module.backbone.get_layer_depth(names[id(param)], 'backbone.')
            decay = self.paramwise_cfg['layer_decay_rate'] ** (num_layers - 1 - depth)
            group['lr'] = group.get('lr', self.base_lr) * decay
