"""The golden features are what the reference implementations compute."""

import numpy as np
import pytest
from data.make_features import DATA, NETWORKS, compare, golden_features

# Another BLAS may round the last bit of a float32 to the other side.
TOLERANCE = 1e-6


@pytest.mark.parametrize('network', NETWORKS)
def test_a_variant_can_be_made_again(network: str) -> None:
    golden, stored = NETWORKS[network], np.load(DATA / f'{network}_features.npz')
    content = golden_features(network, golden.variants[:1], golden.sizes[-1:])
    assert len(content) == (25 if golden.neck else 13)  # with the four levels of a pyramid
    assert compare(content, stored) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize('network', NETWORKS)
def test_a_whole_file_can_be_made_again(network: str) -> None:
    content, stored = golden_features(network), np.load(DATA / f'{network}_features.npz')
    assert content.keys() == set(stored.files)
    assert compare(content, stored) < TOLERANCE


def test_a_wrong_value_shows() -> None:
    stored = dict(np.load(DATA / 'p2t_features.npz'))
    wrong = {key: values.copy() for key, values in stored.items()}
    wrong['tiny/1x3x24x40/stage3/samples'][0] += 1e-5 * stored['tiny/1x3x24x40/stage3/mean_std'][1]
    assert compare(stored, stored) == 0
    assert compare(wrong, stored) > TOLERANCE
    wrong['tiny/1x3x24x40/stage3/shape'][1] += 1
    with pytest.raises(AssertionError, match='tiny/1x3x24x40/stage3/shape'):
        compare(wrong, stored)
