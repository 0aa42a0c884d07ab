"""Predicts images with an exported detector, as the model it was exported from does."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor

from mmhatnet.errors import ExportError
from mmhatnet.export.running import not_taken, read_metadata, runners
from mmhatnet.inference import LoadedImage, read_image


class FileDetector:
    """An exported detector.

    Args:
        file (str | Path): The file.
        device (str | torch.device): Where a PT2 file was exported.
        run (Callable, optional): Of ``runners``, if the file is open already.

    Raises:
        ExportError: If no runtime for the file is installed.
    """

    def __init__(
        self,
        file: str | Path,
        device: str | torch.device = 'cpu',
        run: Callable[[Tensor], list[Tensor]] | None = None,
    ) -> None:
        self.run = run or next(runners(file), (None, None))[1]
        if self.run is None:
            raise ExportError(f'{file} cannot be run: install onnxruntime or openvino.')
        self.device = device
        about = read_metadata(file)
        self.outputs = about['outputs']
        self.reversed = about['channel_order'] == 'RGB'
        self.resizes = 'resize' in about
        self.mask_threshold = about.get('mask_thr_binary')

    def __call__(self, images: Sequence[LoadedImage]) -> list[InstanceData]:
        """Predicts images of one size.

        Args:
            images (Sequence[LoadedImage]): The images. A file that resizes takes their pixels, and
                any other takes what the test pipeline makes of them.

        Raises:
            ExportError: If the file does not take images of this size.

        Returns:
            list[InstanceData]: Of each image, ``bboxes`` (D, 4) in its pixels, ``scores``,
            ``labels``, and with a mask head ``masks`` (D, H, W) as booleans.
        """
        batch = torch.stack([self._pixels_of(image) for image in images]).float()
        found = dict(zip(self.outputs, (output.cpu() for output in self._run(batch))))
        indices = found.pop('image_indices')
        results = []
        for index, image in enumerate(images):
            of_image = {name: output[indices == index] for name, output in found.items()}
            boxes = of_image['boxes']
            if not self.resizes:
                scale = image.data['data_samples'].metainfo.get('scale_factor', (1, 1))
                boxes = boxes / boxes.new_tensor(scale).repeat(2)
            result = InstanceData(
                bboxes=boxes, scores=of_image['scores'], labels=of_image['labels']
            )
            if 'masks' in of_image:
                result.masks = _pasted(of_image['masks'], boxes, image.size) >= self.mask_threshold
            results.append(result)
        return results

    def _run(self, images: Tensor) -> Sequence[Tensor]:
        try:
            return self.run(images.to(self.device))
        except Exception as error:
            raise not_taken(images, error) from error

    def _pixels_of(self, image: LoadedImage) -> Tensor:
        if self.resizes:
            pixels = torch.from_numpy(np.ascontiguousarray(image.pixels)).permute(2, 0, 1)
        else:
            pixels = image.data['inputs']
        return pixels.flip(0) if self.reversed else pixels


def _pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns probabilities (D, H, W) at the size of the image, as mmdetection computes them."""
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    height, width = size
    pasted = [
        _do_paste_mask(mask[None, None], box[None], height, width, skip_empty=False)[0]
        for mask, box in zip(masks, boxes)
    ]
    return torch.cat(pasted) if pasted else masks.new_zeros(0, height, width)


def evaluate(detector: FileDetector, cfg: Config, classes: Sequence[str]) -> dict:
    """Evaluates an exported detector with the test data and metrics of a config.

    Args:
        detector (FileDetector): The detector.
        cfg (Config): The config.
        classes (Sequence[str]): The names of its classes.

    Returns:
        dict: The metrics, as ``mmhatnet test`` gives them.
    """
    loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = dict(loader.dataset.metainfo, classes=tuple(classes))
    for batch in loader:
        for pixels, sample in zip(batch['inputs'], batch['data_samples']):
            data = dict(inputs=pixels, data_samples=sample)
            image = LoadedImage(sample.img_path, read_image(sample.img_path), data)
            (sample.pred_instances,) = detector([image])
            evaluator.process([sample])
    return evaluator.evaluate(len(loader.dataset))
