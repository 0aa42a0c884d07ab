"""The rules that lead from the figures of a data set and a device to the settings of a training."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from mmhatnet.new_config.recipe import (
    JOBS,
    Budget,
    Device,
    Facts,
    Quantiles,
    Recipe,
    plan,
    wanted_iterations,
)

CPU, GPU, SMALL_GPU = Device(2), Device(16, 24), Device(4, 8)


def even(value: float) -> Quantiles:
    return Quantiles(value, value, value)


def facts(
    images: int = 400,
    share: float | Quantiles | None = 0.2,
    longer: float = 640,
    shorter: float = 480,
    job: str = 'retinanet',
    **others,
) -> Facts:
    return Facts(
        job=job,
        images=images,
        validation=others.pop('validation', max(1, images // 4)),
        classes=3,
        longer=even(longer),
        shorter=even(shorter),
        narrowest=int(shorter),
        objects=5 * images,
        share=even(share) if isinstance(share, float) else share,
        **others,
    )


def values(recipe: Recipe, *names: str) -> tuple:
    found = (getattr(recipe, name) for name in names)
    return tuple(getattr(setting, 'value', setting) for setting in found)


SIZES = [
    # Objects of half the image in large images: the smallest size.
    (facts(share=0.5, longer=4000, shorter=3000), GPU, 320),
    # A tenth of the objects are 4 pixels of 1,333: as large as it is useful.
    (facts(share=4 / 1333, longer=1333, shorter=800), GPU, 1344),
    # COCO: small objects in images of 640.
    (facts(118_000, share=Quantiles(0.016, 0.1, 0.5)), GPU, 1344),
    # Small images stay small, or grow where objects are tiny.
    (facts(share=0.3, longer=128, shorter=128), GPU, 128),
    (facts(share=0.05, longer=128, shorter=128), GPU, 480),
    (facts(share=0.3, longer=20, shorter=20), GPU, 96),
    # A pixel in images of 20,000: nothing helps but tiles.
    (facts(share=1 / 20_000, longer=20_000, shorter=20_000), GPU, 2048),
    (facts(share=0.03, longer=1600, shorter=1200), GPU, 1600),
    (facts(share=0.03, longer=1600, shorter=1200), CPU, 640),
    (facts(share=1 / 2000, longer=2048, shorter=2048, arch='large'), SMALL_GPU, 832),
    (facts(share=None), GPU, 320),
    (facts(job='semfpn', longer=3000, shorter=2000), GPU, 512),
    (facts(job='semfpn', longer=160, shorter=128), GPU, 128),
    (facts(job='imagenet', longer=3000, shorter=2000), GPU, 224),
    (facts(job='imagenet', longer=32, shorter=32), GPU, 64),
]


@pytest.mark.parametrize(('given', 'device', 'size'), SIZES)
def test_image_size_follows_from_objects(given: Facts, device: Device, size: int) -> None:
    assert plan(given, device).image_size.value == size


LENGTHS = [
    # images, device: batch, epochs, iterations, warm-up, epochs between validations
    (1, CPU, (1, 500, 500, 25, 25)),
    (12, CPU, (2, 289, 1734, 87, 15)),
    (100, GPU, (16, 179, 1253, 63, 9)),
    (400, GPU, (16, 100, 2500, 125, 5)),
    (2000, CPU, (4, 45, 22_500, 500, 3)),
    (100_000, GPU, (16, 12, 75_000, 500, 1)),
]


@pytest.mark.parametrize(('images', 'device', 'expected'), LENGTHS)
def test_length_follows_from_images(images: int, device: Device, expected: tuple) -> None:
    recipe = plan(facts(images), device)
    names = 'batch_size', 'epochs', 'iterations', 'warm_up', 'validate_every'
    assert values(recipe, *names) == expected


@pytest.mark.parametrize('job', JOBS)
@pytest.mark.parametrize('device', [CPU, GPU, SMALL_GPU, Device(1, 1)])
@pytest.mark.parametrize('arch', ['tiny', 'large'])
def test_more_images_are_trained_no_less(job: str, device: Device, arch: str) -> None:
    counts = [*range(1, 40), *(round(40 * 1.25**k) for k in range(36))]
    assert counts[-1] > 90_000
    recipes = [plan(facts(count, job=job, arch=arch), device) for count in counts]
    for count, recipe in zip(counts, recipes):
        batch = recipe.batch_size.value
        assert 1 <= batch <= count
        assert 1 <= recipe.warm_up.value <= recipe.iterations / 2
        assert 0 < recipe.learning_rate.value < 2e-3
        if job != 'semfpn':
            assert recipe.iterations == recipe.epochs.value * math.ceil(count / batch)
            assert 1 <= recipe.validate_every.value <= recipe.epochs.value
    wanted = [wanted_iterations(facts(count, job=job), 4) for count in counts]
    assert wanted == sorted(wanted)
    # Epochs are whole, and those of a large set are long.
    for fewer, more in pairwise(recipes):
        an_epoch = fewer.iterations / (fewer.epochs.value or math.inf)
        assert more.iterations >= fewer.iterations - an_epoch


def test_smaller_objects_never_make_images_smaller() -> None:
    shares = [0.9 * 0.8**k for k in range(40)]
    for longer in (64, 500, 1000, 5000, 20_000):
        for device in (CPU, GPU, SMALL_GPU):
            sizes = [
                plan(facts(share=share, longer=longer, shorter=longer), device).image_size.value
                for share in shares
            ]
            assert sizes == sorted(sizes) and all(size % 32 == 0 for size in sizes)


def test_memory_limits_batches() -> None:
    large = facts(2000, share=0.02, longer=1333, shorter=800)
    batches = [plan(large, Device(8, memory)).batch_size.value for memory in (4, 8, 16, 40, 80)]
    assert batches == sorted(batches) and batches[0] == 1 and batches[-1] == 16


def test_anchors_become_smaller_for_small_objects() -> None:
    def divisor(low: float, high: float) -> float:
        share = Quantiles(low, low, high)
        return plan(facts(share=share, longer=1344, shorter=1344), GPU).anchors.value

    assert divisor(0.2, 0.4) == 1
    assert divisor(0.012, 0.03) == 2
    assert divisor(0.003, 0.03) == 4
    assert divisor(0.003, 0.3) == 1  # They must reach the large ones.


@pytest.mark.parametrize('share', [1 / 20_000, 1e-6])
def test_what_cannot_be_found_is_said(share: float) -> None:
    given = facts(share=share, longer=20_000, shorter=20_000)
    assert any('tiles' in note for note in plan(given, GPU).notes)
    assert not plan(facts(), GPU).notes
    assert any('CPU' in note for note in plan(given, CPU).notes)


def test_validation_takes_little_time() -> None:
    assert plan(facts(20_000, validation=100), GPU).validate_every.value == 1
    assert plan(facts(12, validation=5000), CPU).validate_every.value == 289
    assert plan(facts(12, validation=0), CPU).validate_every.value == 15
    assert plan(facts(400, validation=10, job='semfpn'), CPU).validate_every.value == 1000


def test_time_limits_a_training() -> None:
    whole = plan(facts(), CPU)
    short = plan(facts(), CPU, Budget(hours=1, seconds=2))
    assert 0.9 * 0.8 * 1800 <= short.iterations <= 0.8 * 1800
    assert any(f'{whole.iterations:,}'[:2] in note for note in short.notes)
    assert plan(facts(), CPU, Budget(hours=1000, seconds=2)).iterations == pytest.approx(
        whole.iterations, rel=0.06
    )


def test_plenty_of_time_changes_nothing() -> None:
    for images in (1, 5, 412):
        recipe, timed = plan(facts(images), CPU), plan(facts(images), CPU, Budget(1e9, 1))
        assert timed.epochs.value == recipe.epochs.value and timed.notes == recipe.notes


def test_little_time_makes_smaller_images_and_batches() -> None:
    names = 'epochs', 'iterations', 'image_size', 'batch_size'
    large = facts(2000)  # It takes 480 pixels of 640, and less than an epoch.
    assert values(plan(large, CPU, Budget(0.1, 9)), *names) == (0, 64, 480, 2)
    small = facts(2000, share=0.03, longer=256, shorter=192)
    assert values(plan(small, CPU), 'image_size', 'batch_size') == (640, 4)
    assert values(plan(small, CPU, Budget(0.1, 9)), *names) == (0, 399, 256, 2)
    assert values(plan(small, CPU, Budget(1, 9)), *names) == (0, 499, 512, 4)


def test_every_setting_has_its_reason() -> None:
    recipe = plan(facts(412), GPU)
    assert recipe.epochs.reason == '412 images, 16 at a time: 98 epochs with 2,548 iterations.'
    shown = ('image_size', 'batch_size', 'workers', 'learning_rate', 'warm_up', 'validate_every')
    for name in shown:
        reason = getattr(recipe, name).reason
        assert reason.endswith('.') and any(letter.isdigit() for letter in reason), name


def test_small_images_are_not_left_out() -> None:
    assert plan(replace(facts(), narrowest=9), GPU).narrowest == 9
    assert plan(facts(), GPU).narrowest == 32
