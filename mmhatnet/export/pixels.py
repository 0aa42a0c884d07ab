"""Whole models and parts of them, as modules that take pixels."""

import math

import torch
from torch import Tensor, nn

from mmhatnet.errors import ExportError

PARTS = ('model', 'neck', 'backbone')


class TakesPixels(nn.Module):
    """Base of the modules that take pixels from 0 to 255 and normalize them as a model does.

    Args:
        model (nn.Module): A model of OpenMMLab, with its preprocessor.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        preprocessor = model.data_preprocessor
        self.normalized = bool(getattr(preprocessor, '_enable_normalize', False))
        if self.normalized:
            for name in ('mean', 'std'):
                values = getattr(preprocessor, name).detach().clone().float()
                self.register_buffer(name, values.view(-1, 1, 1))
        # OpenCV reads BGR, which the preprocessor may convert.
        converted = getattr(preprocessor, '_channel_conversion', False)
        converted = converted or getattr(preprocessor, 'to_rgb', False)
        self.channel_order = 'RGB' if converted else 'BGR'

    def normalize(self, images: Tensor) -> Tensor:
        """Maps pixels (N, C, H, W) to the values that the backbone expects."""
        return (images - self.mean) / self.std if self.normalized else images


class FromPixels(TakesPixels):
    """A part of a model as a module that takes pixels from 0 to 255 and returns tensors.

    Args:
        model (nn.Module): A classifier, segmentor or detector of OpenMMLab.
        part (str): 'model' for logits, 'neck' for the features behind backbone and neck,
            'backbone' for those of the backbone.

    Raises:
        ExportError: If the whole model is neither a classifier nor a segmentor.
    """

    def __init__(self, model: nn.Module, part: str) -> None:
        super().__init__(model)
        if part == 'model' and not self.gives_logits(model):
            raise ExportError(
                f'{type(model).__name__} is neither a classifier nor a segmentor: export a whole '
                'detector with export_detector, or its part "neck" or "backbone".'
            )
        self.part = part
        self.model = model.backbone if part == 'backbone' else model
        # MMSegmentation compares the sigmoid of a single output for two classes with a threshold.
        share = getattr(getattr(model, 'decode_head', None), 'threshold', None)
        self.threshold = None if share is None else _logit(share)

    @staticmethod
    def gives_logits(model: nn.Module) -> bool:
        return hasattr(model, 'encode_decode') or (
            hasattr(model, 'head') and not hasattr(model, 'bbox_head')
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps images (N, C, H, W) to a tuple of outputs."""
        x = self.normalize(images)
        if self.part == 'backbone':
            outputs = self.model(x)
        elif self.part == 'neck':
            outputs = self.model.extract_feat(x)
        elif hasattr(self.model, 'encode_decode'):
            # Logits at the size of the images, before MMSegmentation takes the argmax.
            outputs = self.model.encode_decode(x, [dict(img_shape=x.shape[2:])])
            if self.threshold is not None and outputs.shape[1] == 1:
                # The larger one is the class, as where there is an output for each of both.
                outputs = torch.cat([torch.zeros_like(outputs), outputs - self.threshold], dim=1)
        else:
            outputs = self.model(x)
        return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _logit(share: float) -> float:
    share = min(max(share, 1e-30), 1 - 1e-15)  # Those of 0 and 1 are infinite.
    return math.log(share / (1 - share))


def synthetic_images(model: nn.Module, batch: int, height: int, width: int) -> Tensor:
    """Draws pixels for a model, of shape (batch, C, height, width)."""
    weight = next(p for p in model.backbone.parameters() if p.ndim == 4)
    channels = getattr(model.backbone, 'in_channels', weight.shape[1])
    generator = torch.Generator().manual_seed(0)
    image = 255 * torch.rand(batch, channels, height, width, generator=generator)
    return image.to(weight.device)
