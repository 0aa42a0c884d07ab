"""Compares the recipe of new-config with the paper's, which it wrote before: AP50 at equal time.

    python tools/make_toy_data.py
    python tools/train.py configs/toy/retinanet_hatnet_toy.py
    python tests/compare_recipes.py OUT --weights work_dirs/retinanet_hatnet_toy/epoch_3.pth

It makes synthetic sets of several numbers of images, with small and with large objects. On each it
trains a RetinaNet with both recipes from the same weights, until a training has used the same time
of one CPU thread, and tests what it has learned by then. Results are added to OUT/results.jsonl.
--start says what is taken of the weights: all but the layer of classes, the backbone, or nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmhatnet.checkpoints.files import read_checkpoint
from mmhatnet.new_config.facts import gather_facts
from mmhatnet.new_config.layouts import read_layout
from mmhatnet.new_config.recipe import SHARE_OF_VALIDATION, Budget, Device, plan
from mmhatnet.new_config.templates import render_config
from mmhatnet.new_config.timing import seconds_per_iteration
from mmhatnet.synthetic_data import COCO, SCALE, Canvas, annotate, fill, placed, save

TOY = Path(__file__).parents[1] / 'configs' / 'toy' / 'retinanet_hatnet_toy.py'
IMAGES, VALIDATION, SIZE = (12, 100, 400, 2000), 20, (256, 192)
# Half the sides of objects in pixels, and how many are in an image.
OBJECTS = dict(small=((5, 9), (3, 7)), large=((30, 60), (1, 4)))
ARMS = ('before', 'after')

# What new-config wrote before it had recipes.
BEFORE = """_base_ = __import__('mmhatnet').config_path('hatnet/retinanet_hatnet-t_fpn_1x_coco.py')
classes = {classes!r}
model = dict(bbox_head=dict(num_classes=len(classes)))
data_root = {root!r}
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_data = dict(ann_file='train.json', data_prefix=dict(img=''))
train_dataloader = dict(dataset=dict(**dataset, **train_data))
val_data = dict(ann_file='val.json', data_prefix=dict(img=''))
val_dataloader = dict(dataset=dict(**dataset, **val_data))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=0.0001 * 2 / 16))
"""


def draw(rng: np.random.Generator, objects: str) -> tuple[object, list[dict]]:
    """Draws an image of scenery with objects, which lie in front of each other."""
    (smallest, largest), counts = OBJECTS[objects]
    size, canvas = np.array(SIZE), Canvas(rng, np.array(SIZE), 0.25)
    canvas.scenery()
    classes, things = rng.choice(list(COCO), rng.integers(*counts)).tolist(), []
    cover = np.zeros_like(canvas.labels)
    while len(things) < len(classes):
        radius, class_id = rng.uniform(smallest, largest), classes[len(things)]
        center = rng.uniform(0.9 * radius, size - 0.9 * radius)
        shapes = placed(rng, COCO[class_id](rng), center, radius, 25)
        mask = fill(np.zeros_like(cover), shapes, 1)
        if thing := annotate(mask, cover, False):
            things.append((shapes, dict(thing, category_id=class_id)))
            cover |= mask
        elif things and rng.random() < 0.1:  # There may be no room.
            classes.pop()
    for shapes, _ in reversed(things):
        canvas.draw(shapes, shadow=SCALE * 2)
    return canvas.finish(), [thing for _, thing in things]


def make_set(folder: Path, objects: str, count: int, seed: int = 0) -> None:
    """Makes the sets with these objects up to a number of images. Smaller ones are parts of it."""
    records = {}
    for split, number in dict(train=count, val=VALIDATION).items():
        images, annotations = [], []
        for index in range(number):
            name = f'images/{objects}/{split}_{index:05d}.jpg'
            image, things = draw(
                np.random.default_rng([seed, index, *f'{objects}{split}'.encode()]), objects
            )
            save(image, folder / name)
            images.append(dict(id=index + 1, file_name=name, width=SIZE[0], height=SIZE[1]))
            for thing in things:
                thing.update(id=len(annotations) + 1, image_id=index + 1)
                annotations.append(thing)
        records[split] = images, annotations
    categories = [dict(id=key, name=painter.__name__) for key, painter in COCO.items()]
    for number in IMAGES:
        if number > count:
            continue
        place = folder / f'{objects}_{number}'
        place.mkdir(exist_ok=True)
        if not (place / 'images').is_symlink():
            (place / 'images').symlink_to(folder / 'images')
        for split, (images, annotations) in records.items():
            kept = images[:number] if split == 'train' else images
            content = dict(
                images=kept,
                annotations=[a for a in annotations if a['image_id'] <= len(kept)],
                categories=categories,
            )
            (place / f'{split}.json').write_text(json.dumps(content))


class Enough(Exception):
    """The time is over."""


class StopAfter(Hook):
    """Ends a training when this process has used some time of a CPU."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.begun, self.used, self.done = seconds, None, 0.0, 0

    def before_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        self.begun = self.begun or time.process_time()

    def after_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        self.used, self.done = time.process_time() - self.begun, self.done + 1
        if self.used >= self.seconds:
            raise Enough


def start_weights(file: str, folder: Path, start: str) -> None:
    """Writes the weights from which trainings start."""
    state = read_checkpoint(file)['state_dict']
    kept = dict(
        detector={k: v for k, v in state.items() if not k.startswith('bbox_head.retina_cls')},
        backbone={k: v for k, v in state.items() if k.startswith('backbone.')},
    )
    torch.save(dict(state_dict=kept[start], meta={}), folder / f'{start}.pth')


def shared(cfg: Config, folder: Path, start: str) -> Config:
    """Gives both recipes the same small heads and weights, and no validation before the end."""
    toy = Config.fromfile(TOY)
    cfg.model = toy.model
    if start != 'random':
        cfg.load_from = str(folder.parents[1] / f'{start}.pth')
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    cfg.train_cfg.val_interval = 10**6
    cfg.default_hooks.checkpoint = None
    cfg.default_hooks.logger.interval = 10
    # Not 0, as for the trained detector: the layer of classes would begin as that one's did.
    cfg.randomness = dict(seed=1)
    cfg.work_dir = str(folder)
    return cfg


def config_of(arm: str, data: Path, folder: Path, minutes: float, start: str) -> Config:
    """Returns the config of a recipe. The new one is told the time, as with --hours."""
    folder.mkdir(parents=True, exist_ok=True)
    found, path = read_layout(data, 'retinanet'), folder / 'config.py'
    if arm == 'before':
        path.write_text(BEFORE.format(classes=found['classes'], root=f'{data}/'))
        return shared(Config.fromfile(path), folder, start)
    facts, device, budget = gather_facts(found, data, 'tiny'), Device(cores=2), None
    if minutes:
        path.write_text(render_config(found, data, 'tiny', plan(facts, device)))
        taken = seconds_per_iteration(
            shared(Config.fromfile(path), folder, start), time.process_time, iterations=2
        )
        budget = Budget(minutes / 60 / (1 - SHARE_OF_VALIDATION), taken)
    path.write_text(render_config(found, data, 'tiny', plan(facts, device, budget)))
    return shared(Config.fromfile(path), folder, start)


def train(arm: str, data: Path, out: Path, minutes: float, start: str) -> dict:
    """Trains a recipe for some minutes, and returns what it reached."""
    folder = out / 'runs' / f'{data.name}_{arm}_{start}_{minutes:g}'
    cfg = config_of(arm, data, folder, minutes, start)
    runner = Runner.from_cfg(cfg)
    stop = StopAfter(60 * minutes)
    runner.register_hook(stop)
    with suppress(Enough):
        runner.train()
    metrics = runner.val_loop.run()
    return dict(
        set=data.name,
        arm=arm,
        start=start,
        minutes=minutes,
        ap50=round(float(metrics['coco/bbox_mAP_50']), 3),
        ap=round(float(metrics['coco/bbox_mAP']), 3),
        iterations=stop.done,
        planned=runner.max_iters,
        batch=cfg.train_dataloader.batch_size,
        scale=list(cfg.test_dataloader.dataset.pipeline[1].scale),
        seconds=round(stop.used, 1),
    )


def runs(args: argparse.Namespace) -> Iterator[list[str]]:
    for objects, number, arm in product(args.objects, args.images, args.arms):
        words = [sys.executable, __file__, str(args.out), '--minutes', str(args.minutes)]
        words += ['--start', args.start]
        yield [*words, '--one', arm, str(args.out / f'{objects}_{number}')]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path, help='the folder of sets and results')
    parser.add_argument('--weights', help='a trained detector; it may be left out later')
    parser.add_argument('--start', choices=['detector', 'backbone', 'random'], default='detector')
    parser.add_argument('--minutes', type=float, default=1, help='of a CPU thread for a training')
    parser.add_argument('--images', type=int, nargs='+', default=IMAGES)
    parser.add_argument('--objects', nargs='+', choices=[*OBJECTS], default=[*OBJECTS])
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=ARMS)
    parser.add_argument('--jobs', type=int, default=2, help='the trainings at a time')
    parser.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    if args.one:
        torch.set_num_threads(1)
        arm, data = args.one
        result = train(arm, Path(data), args.out, args.minutes, args.start)
        with (args.out / 'results.jsonl').open('a') as file:
            file.write(f'{json.dumps(result)}\n')
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if args.weights and args.start != 'random':
        start_weights(args.weights, args.out, args.start)
    for objects in args.objects:
        if not (args.out / f'{objects}_{max(args.images)}' / 'val.json').is_file():
            make_set(args.out, objects, max(args.images))
    environment = dict(os.environ, OMP_NUM_THREADS='1')
    with ThreadPoolExecutor(args.jobs) as pool:
        for _ in pool.map(
            lambda words: subprocess.run(
                words, env=environment, check=True, stdout=subprocess.DEVNULL
            ),
            runs(args),
        ):
            print((args.out / 'results.jsonl').read_text().splitlines()[-1], flush=True)


if __name__ == '__main__':
    main()
