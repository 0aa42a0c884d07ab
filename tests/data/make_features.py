"""Computes the golden features of the networks and compares them with NETWORK_features.npz.

``README.md`` beside this file describes the content of these files. The features come from the
reference implementations in ``tests/reference``, in float64.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference import glnet, hatnet, omninet, p2t, shunted, stvit
from synthetic import synthetic_image, synthetic_value


class Golden(NamedTuple):
    """The content of the file of one network.

    Attributes:
        build: Builds the reference implementation of a variant, with the published key names.
        variants: Names of the variants, the smallest one first.
        sizes: Sizes of the inputs, the smallest one last.
        num_samples: The number of values of a feature that are stored, at most.
        settings: Further names that ``build`` takes, with the sizes of their inputs.
        feature_name: The name of a feature, from its index and the number of features.
        neck: Builds what takes the last feature of a variant, from its channels. Its outputs for
            the smallest input are stored.
    """

    build: Callable[[str], nn.Module]
    variants: list[str]
    sizes: list[str]
    num_samples: int = 512
    settings: Mapping[str, list[str]] = MappingProxyType({})
    feature_name: Callable[[int, int], str] = lambda index, count: f'stage{index}'
    neck: Callable[[int], nn.Module] | None = None


DATA = Path(__file__).parent
SIZES = ['2x3x224x224', '1x3x200x304', '1x3x65x97']
NETWORKS = {
    'hatnet': Golden(
        hatnet.build,
        list(hatnet.VARIANTS),
        ['2x3x224x224', '1x3x448x224', '1x3x200x304', '1x3x65x97', '1x3x32x32'],
        num_samples=1024,
    ),
    'p2t': Golden(p2t.build, list(p2t.VARIANTS), [*SIZES, '1x3x24x40']),
    'shunted': Golden(shunted.build, list(shunted.VARIANTS), [*SIZES, '1x3x24x40']),
    'stvit': Golden(stvit.build, list(stvit.VARIANTS), SIZES),
    'glnet': Golden(glnet.build, list(glnet.VARIANTS), SIZES),
    'omninet': Golden(
        omninet.build,
        list(omninet.SIZES),
        SIZES,
        settings={f'tiny+{name}': ['1x3x224x224', '1x3x65x97'] for name in omninet.SETTINGS},
        feature_name=omninet.feature_name,
        neck=omninet.SimpleFeaturePyramid,
    ),
}


def with_synthetic_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """Builds a module in float64, with the weights that follow from the names of its tensors."""
    with torch.device('meta'):
        module = build()
    weights = {
        name: synthetic_value(name, tuple(meta.shape)) for name, meta in module.state_dict().items()
    }
    module.load_state_dict(weights, assign=True)
    return module.double().eval()


@torch.no_grad()
def compute(network: str, variant: str, sizes: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Yields the features and the logits of one variant in float64, with their keys."""
    golden = NETWORKS[network]
    model = with_synthetic_weights(partial(golden.build, variant))
    for size in sizes:
        features, logits = model(synthetic_image(*map(int, size.split('x'))).double())
        for index, feature in enumerate(features):
            yield f'{variant}/{size}/{golden.feature_name(index, len(features))}', feature
        yield f'{variant}/{size}/logits', logits
        if golden.neck and variant in golden.variants and size == golden.sizes[-1]:
            pyramid = with_synthetic_weights(partial(golden.neck, features[-1].shape[1]))
            for level, feature in enumerate(pyramid(features[-1]), 2):
                yield f'{variant}/{size}/pyramid{level}', feature


def summarize(key: str, values: Tensor, num_samples: int) -> dict[str, np.ndarray]:
    """Returns the arrays that represent a feature, or logits."""
    if key.endswith('logits'):
        return {key: values.float().numpy()}
    flat = values.flatten()
    return {
        f'{key}/shape': np.array(values.shape),
        f'{key}/samples': flat[:: max(1, len(flat) // num_samples)][:num_samples].float().numpy(),
        f'{key}/mean_std': torch.stack([flat.mean(), flat.std()]).float().numpy(),
    }


def golden_features(
    network: str, variants: list[str] | None = None, sizes: list[str] | None = None
) -> dict[str, np.ndarray]:
    """Computes the content of a file, for all or for the given variants and sizes."""
    golden = NETWORKS[network]
    content = {}
    for variant in variants or [*golden.variants, *golden.settings]:
        of_variant = golden.settings.get(variant, golden.sizes)
        for key, values in compute(network, variant, sizes or of_variant):
            content |= summarize(key, values, golden.num_samples)
    return content


def compare(content: dict[str, np.ndarray], stored: Mapping[str, np.ndarray]) -> float:
    """Returns the largest difference, in standard deviations of the feature or of the logits.

    Raises:
        AssertionError: If a feature has another shape.
    """
    largest = 0.0
    for key, values in content.items():
        if key.endswith('shape'):
            np.testing.assert_array_equal(values, stored[key], err_msg=key)
            continue
        summary = f'{key.rpartition("/")[0]}/mean_std'
        std = stored[summary][1] if summary in stored else stored[key].std()
        largest = max(largest, np.abs(values - stored[key]).max() / std)
    return float(largest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('networks', nargs='*', metavar='NETWORK', help=', '.join(NETWORKS))
    parser.add_argument('--write', action='store_true', help='replace the stored files')
    args = parser.parse_args()
    for network in args.networks or NETWORKS:
        content, file = golden_features(network), DATA / f'{network}_features.npz'
        if args.write:
            np.savez_compressed(file, **content)
            print(f'{file.name}: {len(content)} arrays written')
            continue
        stored = np.load(file)
        assert content.keys() == set(stored.files), f'{file.name} has other keys'
        equal = sum(np.array_equal(values, stored[key]) for key, values in content.items())
        print(
            f'{file.name}: {equal} of {len(content)} arrays equal bit for bit, others within '
            f'{compare(content, stored):.1e} standard deviations'
        )


if __name__ == '__main__':
    main()
