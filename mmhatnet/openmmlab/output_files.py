"""Gives each image of a test a file of its own.

Hooks and metrics of the frameworks name a file after an image without its folder, so that images of
the same name in several folders share one file, which keeps the last.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner

from mmhatnet.errors import ConfigError


def separate_output_files(runner: Runner) -> None:
    """Makes a test write into subfolders, as the images are in, where names of images repeat.

    Args:
        runner (Runner): A runner whose test has not begun. Its metrics and hooks are changed.

    Raises:
        ConfigError: If two images of one folder would still share a file, or labels do not fit into
            the files.
    """
    metrics = [
        metric
        for metric in runner.test_loop.evaluator.metrics
        if getattr(metric, 'output_dir', None) is not None
    ]
    for metric in metrics:
        _require_room(metric)
    folders = [attribute for _, attribute in _drawing_hooks(runner)]
    if not metrics and not folders:
        return
    paths = _paths_of_images(runner.test_loop.dataloader.dataset)
    # Label maps lose the suffix of the image.
    names = [Path(path).stem if metrics else os.path.basename(path) for path in paths]
    if len({*names}) == len(names):
        return
    parents = [os.path.dirname(os.path.abspath(path)) for path in paths]
    top = os.path.commonpath(parents)
    _require_unique(paths, [os.path.join(*pair) for pair in zip(parents, names)])

    def folder_of(folder: str, path: str) -> str:
        inner = os.path.relpath(os.path.dirname(os.path.abspath(path)), top)
        made = os.path.normpath(os.path.join(folder, inner))
        os.makedirs(made, exist_ok=True)
        return made

    for metric in metrics:
        metric.process = _process_singly(metric, folder_of)
    for hook, attribute in _drawing_hooks(runner):
        draw = _draw_labels_singly if attribute == 'out_dir' else _draw_boxes_singly
        draw(hook, runner, folder_of)


def _drawing_hooks(runner: Runner) -> Iterator[tuple[object, str]]:
    """Yields hooks that draw into a folder, and the attribute that names it."""
    for hook in runner.hooks:
        # Hooks of MMDetection and MMPretrain. MMSegmentation's files have numbers.
        for enabled, attribute in (('draw', 'test_out_dir'), ('enable', 'out_dir')):
            if getattr(hook, enabled, False) and getattr(hook, attribute, None) is not None:
                yield hook, attribute


def _require_room(metric: BaseMetric) -> None:
    classes = len((metric.dataset_meta or {}).get('classes') or ())
    most = 255 if (metric.dataset_meta or {}).get('reduce_zero_label') else 256
    if classes > most:
        raise ConfigError(
            f'{type(metric).__name__} writes label maps of 8 bits, which have room for {most} '
            f'classes and not for {classes}: leave out --out and output_dir, and write them with '
            '`mmhatnet predict`, in 16 bits.'
        )


def _require_unique(paths: list[str], outputs: list[str]) -> None:
    first: dict[str, str] = {}
    for path, output in zip(paths, outputs):
        other = first.setdefault(output, path)
        if other != path:
            raise ConfigError(
                f'The label maps of {other} and {path} would be one file, because the names differ '
                'in their suffixes alone: rename one of them, or leave out --out.'
            )


def _paths_of_images(dataset: object) -> list[str]:
    """Returns the files of a dataset's images, each once; none if the dataset does not say."""
    try:
        infos = (dataset.get_data_info(index) for index in range(len(dataset)))  # type: ignore
        return list(dict.fromkeys(info['img_path'] for info in infos))
    except (AttributeError, KeyError, TypeError):
        return []


def _process_singly(metric: BaseMetric, folder_of: Callable[[str, str], str]) -> Callable:
    process, folder = metric.process, metric.output_dir

    def process_singly(data_batch: object, data_samples: list[dict]) -> None:
        for sample in data_samples:
            metric.output_dir = folder_of(folder, sample['img_path'])
            process(data_batch, [sample])

    return process_singly


def _draw_boxes_singly(hook, runner: Runner, folder_of: Callable[[str, str], str]) -> None:
    after_test_iter = hook.after_test_iter
    folder = os.path.join(runner.work_dir, runner.timestamp, hook.test_out_dir)

    def draw_singly(runner: Runner, batch_idx: int, data_batch: object, outputs: list) -> None:
        for sample in outputs:
            hook.test_out_dir = os.path.abspath(folder_of(folder, sample.img_path))
            after_test_iter(runner, batch_idx, data_batch, [sample])

    hook.after_test_iter = draw_singly


def _draw_labels_singly(hook, runner: Runner, folder_of: Callable[[str, str], str]) -> None:
    after_test_iter, folder = hook.after_test_iter, hook.out_dir

    def draw_singly(runner: Runner, batch_idx: int, data_batch: dict, outputs: list) -> None:
        for index, sample in enumerate(outputs):
            hook.out_dir = folder_of(folder, sample.img_path)
            # The hook counts images as if all batches had the size of this one.
            number = batch_idx * len(outputs) + index
            batch = dict(data_batch, inputs=data_batch['inputs'][index : index + 1])
            after_test_iter(runner, number, batch, [sample])

    hook.after_test_iter = draw_singly
