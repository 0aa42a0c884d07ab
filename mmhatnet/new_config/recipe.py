"""How to train on given data with a given device: rules that lead from facts to settings.

The rules are arithmetic, and need no training framework. docs/recipes.md says why they are as they
are, and what was measured.
"""

import math
from dataclasses import dataclass, field

# Lengths are in pixels of the resized image where nothing else is said.
MULTIPLE = 32  # Models pad images to this.
LEAST = 320  # Larger images are not made smaller than this.
# Images are not made so small that a tenth of the objects fall below SMALL, or half below FAIR.
SMALL, FAIR = 32, 96
# They are enlarged where a tenth of the objects would be below TINY.
TINY, ENLARGED = 24, 4
WIDEST, WIDEST_CPU, WIDEST_DETAILED = 1344, 640, 2048
SMALLEST_ANCHOR, LARGEST_ANCHOR = 32, 512

# Memory of a training step for a million pixels, in GB, and what a job takes besides.
MEMORY = dict(tiny=3.0, small=3.5, medium=5.0, large=6.5)
FIXED_MEMORY, USED_MEMORY = 1.5, 0.75
SHARE_OF_VALIDATION = 0.2  # of the time, at most
ROUNDS = 20  # about how often a training validates
FEW_EPOCHS = 4  # Less than these in a limited time are counted in iterations.


@dataclass(frozen=True)
class Job:
    """What a kind of training begins with.

    Attributes:
        rate (float): The learning rate of the inherited config.
        base_batch (int): The batch size that it is for.
        most (int): The largest batch of a GPU.
        most_cpu (int): That of a CPU.
        seen (float): Images that are trained on, for a set of one image.
        passes (int): The least number of passes over a set.
        random_heads (bool): Whether most of what follows the backbone starts from random weights.
        metric (str): The metric that counts.
    """

    rate: float
    base_batch: int
    most: int
    most_cpu: int
    seen: float
    passes: int
    random_heads: bool
    metric: str


DETECTOR = dict(
    rate=1e-4, base_batch=16, most=16, most_cpu=4, seen=2000.0, passes=12, random_heads=True
)
JOBS = dict(
    maskrcnn=Job(**DETECTOR, metric='coco/segm_mAP'),
    retinanet=Job(**DETECTOR, metric='coco/bbox_mAP'),
    semfpn=Job(1e-4, 16, 16, 4, 4000.0, 30, True, 'mIoU'),
    imagenet=Job(1e-3, 1024, 128, 32, 2000.0, 12, False, 'accuracy/top1'),
)
FEWEST = 500  # iterations
# The inherited learning rates are for long trainings. Shorter ones get up to HIGHEST times as much.
LONG, HIGHEST = 20_000, 7.0
WARM_UP, LONGEST_WARM_UP = 0.05, 500


@dataclass(frozen=True)
class Quantiles:
    """What a tenth, half and nine tenths of the values are not above."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Facts:
    """What is known of a data set.

    Attributes:
        job (str): 'maskrcnn', 'retinanet', 'semfpn' or 'imagenet'.
        images (int): The training images that are used.
        validation (int): The validation images.
        classes (int): The classes.
        longer (Quantiles): The longer sides of the training images in pixels.
        shorter (Quantiles): Their shorter sides.
        narrowest (int): The smallest of the shorter sides.
        objects (int): The objects in them, where they are annotated one by one.
        share (Quantiles | None): The sides of objects, as a share of the longer side of their
            image. The side of a box is the square root of its area.
        arch (str): The variant of the backbone.
    """

    job: str
    images: int
    validation: int
    classes: int
    longer: Quantiles
    shorter: Quantiles
    narrowest: int
    objects: int = 0
    share: Quantiles | None = None
    arch: str = 'tiny'


@dataclass(frozen=True)
class Device:
    """What trains.

    Attributes:
        cores (int): The CPU cores of this process.
        memory (float): The memory of a GPU in GB; 0 without a GPU.
    """

    cores: int
    memory: float = 0


@dataclass(frozen=True)
class Setting:
    """A setting, and the figures that it follows from."""

    value: int | float
    reason: str


@dataclass(frozen=True)
class Recipe:
    """The settings of a training.

    Attributes:
        image_size (Setting): The longer side of a detector's images in pixels, the shorter side of
            a segmentor's, and the side of the square that a classifier sees.
        anchors (Setting): By what the inherited sizes of anchors are divided.
        batch_size (Setting): The images of an iteration.
        workers (Setting): The processes that load images.
        learning_rate (Setting): The rate after the warm-up.
        epochs (Setting): The passes over the set; 0 where iterations alone are counted.
        iterations (int): The iterations of the whole training.
        warm_up (Setting): The iterations of the warm-up.
        validate_every (Setting): The epochs, or else iterations, between validations.
        metric (str): The metric that counts.
        narrowest (int): The smallest side of images that are not left out.
        notes (tuple[str, ...]): What a user should know besides.
    """

    image_size: Setting
    anchors: Setting
    batch_size: Setting
    workers: Setting
    learning_rate: Setting
    epochs: Setting
    iterations: int
    warm_up: Setting
    validate_every: Setting
    metric: str
    narrowest: int
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Budget:
    """The time that a training may take.

    Attributes:
        hours (float): The time.
        seconds (float): What an iteration takes.
    """

    hours: float
    seconds: float

    @property
    def iterations(self) -> int:
        """The iterations for which there is time besides the validations."""
        return max(1, int(self.hours * 3600 * (1 - SHARE_OF_VALIDATION) / self.seconds))


def plan(facts: Facts, device: Device, budget: Budget | None = None) -> Recipe:
    """Returns the recipe for a data set.

    Args:
        facts (Facts): The data set.
        device (Device): What trains.
        budget (Budget, optional): The time. Defaults to None, for as long as the data are worth.
    """
    job, notes = JOBS[facts.job], []
    size = _image_size(facts, device, notes)
    most = _largest_batch(facts, device, size.value)
    batch = _batch_size(facts, device, size.value, most)
    wanted = wanted_iterations(facts, most)
    whole = wanted * budget.seconds / (1 - SHARE_OF_VALIDATION) / 3600 if budget else 0
    if budget and budget.iterations < FEWEST:
        size, batch, budget = _hurried(facts, size, batch, budget)
    iterations = min(wanted, budget.iterations) if budget else wanted
    an_epoch, epochs = math.ceil(facts.images / batch.value), 0
    if facts.job == 'semfpn' or (budget and iterations < FEW_EPOCHS * an_epoch):
        an_epoch = 1
    else:
        epochs = math.ceil(wanted / an_epoch)
        if budget:
            epochs = max(1, min(epochs, budget.iterations // an_epoch))
        iterations = epochs * an_epoch
    reason = _reason_of_length(facts, batch.value, iterations, epochs)
    if budget:
        reason += (
            f' An iteration was measured to take about {budget.seconds:.2g} s, which leaves '
            f'time for {budget.iterations:,} within --hours {budget.hours:g}.'
        )
        if wanted > budget.iterations:
            notes.append(
                f'Without --hours, the training would have {wanted:,} iterations, and take about '
                f'{whole:,.1f} hours.'
            )
    rate = _learning_rate(job, batch.value, iterations)
    warm_up = max(1, min(LONGEST_WARM_UP, round(WARM_UP * iterations)))
    return Recipe(
        image_size=size,
        anchors=_anchors(facts, size.value),
        batch_size=batch,
        workers=_workers(device),
        learning_rate=rate,
        epochs=Setting(epochs, reason),
        iterations=iterations,
        warm_up=Setting(
            warm_up,
            f'The warm-up takes {_counted(warm_up, "iteration")} of {iterations:,}: '
            f'{WARM_UP:.0%}, at most {LONGEST_WARM_UP}.',
        ),
        validate_every=_validate_every(facts, batch.value, iterations, an_epoch if epochs else 0),
        metric=job.metric,
        narrowest=min(32, max(1, facts.narrowest)),
        notes=tuple(notes),
    )


def _hurried(
    facts: Facts, size: Setting, batch: Setting, budget: Budget
) -> tuple[Setting, Setting, Budget]:
    """Makes images smaller, and then batches, where a given time allows too few iterations.

    Images are not made smaller than they are, and batches not smaller than two images. The time of
    an iteration is in proportion to the pixels.
    """
    seconds, given = budget.seconds, _multiple(facts.longer.middle)
    scale = math.sqrt(budget.iterations / FEWEST)
    smaller = max(given, _multiple(scale * size.value))
    if facts.share and smaller < size.value:
        seconds *= (smaller / size.value) ** 2
        size = Setting(
            smaller,
            f'Images of {size.value:,} pixels would fit the objects better than {smaller:,}, but '
            f'leave time for {_counted(budget.iterations, "iteration")}.',
        )
    count = batch.value
    while count > 2 and Budget(budget.hours, seconds).iterations < FEWEST / 1.5:
        count, seconds = count // 2, seconds / 2
    if count < batch.value:
        batch = Setting(count, f'Batches of {batch.value} leave time for too few iterations.')
    return size, batch, Budget(budget.hours, seconds)


def wanted_iterations(facts: Facts, batch: int) -> int:
    """Returns the iterations that a set is worth, of batches of a size that the set does not limit.

    Images that are trained on grow with the square root of the set, as a small set is learned by
    heart soon; a large set is passed over a few times.
    """
    job = JOBS[facts.job]
    seen = max(job.seen * math.sqrt(facts.images), job.passes * facts.images)
    return max(FEWEST, math.ceil(seen / batch))


def _counted(number: float, unit: str) -> str:
    return f'{number:,} {unit}{"" if number == 1 else "s"}'


def _multiple(length: float) -> int:
    return max(MULTIPLE, math.ceil(length / MULTIPLE) * MULTIPLE)


def _power_of_two(number: float) -> int:
    """Returns the largest power of two that is not above a number, and at least 1."""
    return 1 << max(0, int(number).bit_length() - 1)


def _image_size(facts: Facts, device: Device, notes: list[str]) -> Setting:
    if facts.job == 'imagenet':
        return _classified_size(facts)
    if facts.job == 'semfpn':
        side = facts.shorter.middle
        size = min(512, _multiple(side))
        return Setting(size, f'The shorter side of images is {side:,.0f} pixels, and at most 512.')
    return _detected_size(facts, device, notes)


def _classified_size(facts: Facts) -> Setting:
    side = facts.shorter.middle
    size = min(224, _multiple(2 * side))
    more = ': small images are enlarged to twice their size' if size < 224 else ''
    return Setting(
        size,
        f'Images are {side:,.0f} pixels wide or high, and the published weights are for 224{more}.',
    )


def _detected_size(facts: Facts, device: Device, notes: list[str]) -> Setting:
    given, share = facts.longer.middle, facts.share or Quantiles(1, 1, 1)
    kept = max(LEAST, SMALL / share.low, FAIR / share.middle)
    side = min(given, kept)
    enlarged = share.low * side < TINY
    if enlarged:
        side = max(side, min(TINY / share.low, ENLARGED * given))
    wanted = min(side, max(WIDEST, min(given, WIDEST_DETAILED)))
    side = wanted if device.memory else min(wanted, WIDEST_CPU)
    if device.memory:
        room = _room(device) / MEMORY[facts.arch] * 1e6 / _aspect(facts)
        side = min(side, max(LEAST, math.sqrt(room) // MULTIPLE * MULTIPLE))
    size = _multiple(side)
    reason = (
        f'In images of {given:,.0f} pixels, a tenth of the {_counted(facts.objects, "object")} are '
        f'at most {share.low * given:,.0f} pixels across, and half at most '
        f'{share.middle * given:,.0f}. In images of {size:,} these are {share.low * size:,.0f} and '
        f'{share.middle * size:,.0f}'
    )
    if size < wanted:
        device_has = f'a GPU of {device.memory:.0f} GB' if device.memory else 'a CPU'
        notes.append(
            f'Images of {_multiple(wanted):,} pixels would fit the objects better than {size:,}, '
            f'but are too much for {device_has}.'
        )
        reason += f', the most for {device_has}'
    elif enlarged:
        reason += ', as small objects are found better in enlarged images'
    elif size < given:
        reason += ', which is enough, and faster'
    if share.low * size < TINY / 2:
        notes.append(
            f'A tenth of the objects are at most {share.low * size:,.1f} pixels across in the '
            'resized images, which is hardly found: cut the images into tiles, or use larger '
            'images.'
        )
    return Setting(size, f'{reason}.')


def _aspect(facts: Facts) -> float:
    return facts.shorter.middle / facts.longer.middle


def _room(device: Device) -> float:
    """Returns the memory for images in GB."""
    return max(0.0, USED_MEMORY * device.memory - FIXED_MEMORY)


def _anchors(facts: Facts, size: float) -> Setting:
    """Makes the anchors smaller for small objects, as long as they reach the large ones."""
    divisor, share = 1, facts.share
    if share is None:
        return Setting(1, '')
    small, large = share.low * size, share.high * size
    while (
        divisor < 4
        and SMALLEST_ANCHOR / divisor > 1.5 * small
        and LARGEST_ANCHOR / (2 * divisor) >= large
    ):
        divisor *= 2
    return Setting(
        divisor,
        f'Anchors begin at {SMALLEST_ANCHOR // divisor} pixels instead of {SMALLEST_ANCHOR}, as a '
        f'tenth of the objects are at most {small:,.0f} pixels across in images of {size:,}.',
    )


def _largest_batch(facts: Facts, device: Device, size: float) -> int:
    """Returns the largest batch for which there is memory, whatever the size of the set."""
    job = JOBS[facts.job]
    if not device.memory:
        return job.most_cpu
    square = facts.job in ('semfpn', 'imagenet')
    pixels = size**2 * (1 if square else _aspect(facts)) / 1e6
    return min(job.most, _power_of_two(_room(device) / (MEMORY[facts.arch] * pixels)))


def _batch_size(facts: Facts, device: Device, size: float, most: int) -> Setting:
    batch = min(most, _power_of_two(facts.images / 4))
    if batch < most:
        return Setting(batch, f'{_counted(facts.images, "image")}: four batches or more.')
    if not device.memory:
        return Setting(batch, 'Without a GPU, larger batches save no time.')
    return Setting(
        batch,
        f'For images of {size:,} pixels, a GPU of {device.memory:.0f} GB has room for this many, '
        f'or {JOBS[facts.job].most} suffice.',
    )


def _workers(device: Device) -> Setting:
    if not device.memory:
        count = 1 if device.cores < 8 else 2
        return Setting(count, f'{_counted(device.cores, "CPU core")} train as well as load images.')
    return Setting(
        max(1, min(8, device.cores - 1)), f'{_counted(device.cores, "CPU core")} load images.'
    )


def _reason_of_length(facts: Facts, batch: int, iterations: int, epochs: int) -> str:
    images, length = _counted(facts.images, 'image'), _counted(iterations, 'iteration')
    if epochs:
        return f'{images}, {batch} at a time: {_counted(epochs, "epoch")} with {length}.'
    passes = iterations * batch / facts.images
    passes = round(passes, 2 if passes < 10 else None)
    return f'{images}, {batch} at a time: {length} pass over them {passes:,} times.'


def _learning_rate(job: Job, batch: int, iterations: int) -> Setting:
    factor, length = math.sqrt(batch / job.base_batch), math.sqrt(LONG / iterations)
    reason = (
        f'The inherited rate, {job.rate:g} for batches of {job.base_batch}, changes with the '
        f'square root of the batch size'
    )
    if job.random_heads and length > 1:
        factor = max(factor, min(HIGHEST, factor * length))
        reason += f', and is higher for less than {LONG:,} iterations'
    return Setting(float(f'{job.rate * factor:.2g}'), f'{reason}.')


def _validate_every(facts: Facts, batch: int, iterations: int, an_epoch: int) -> Setting:
    """Returns the epochs between validations, or the iterations where no epochs are counted."""
    # Validation takes a third of the time of training for each image.
    cost = facts.validation / (3 * batch)  # in iterations of training
    rounds = max(iterations / ROUNDS, cost / SHARE_OF_VALIDATION)
    unit, length = ('epoch', an_epoch) if an_epoch else ('iteration', 1)
    every = max(1, min(iterations // length, math.ceil(rounds / length)))
    return Setting(
        every,
        f'After each {_counted(every, unit) if every > 1 else unit}, '
        f'{_counted(facts.validation, "image")} are validated. Two checkpoints are kept: the best '
        'at this and the last one.',
    )
