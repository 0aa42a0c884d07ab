"""The features agree with figures computed in float64 for weights drawn from their names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import drawn_checkpoint, drawn_image
from experiments import rest_slow

from mmhatnet import HATNet

GOLDEN = np.load(Path(__file__).parent / 'data' / 'hatnet_features.npz')
IMAGE_SIZES = ['2x3x224x224', '1x3x448x224', '1x3x200x304', '1x3x65x97', '1x3x32x32']


@pytest.mark.parametrize('arch', rest_slow(HATNet.ARCHS, 'tiny', 'medium'))
def test_features_agree_with_golden_figures(arch: str) -> None:
    model = HATNet(arch).eval()
    model.load_state_dict(drawn_checkpoint(arch, num_classes=0))
    deviations = {}
    for size in IMAGE_SIZES:
        with torch.no_grad():
            features = model(drawn_image(*map(int, size.split('x'))))
        for stage, feature in enumerate(features):
            key = f'{arch}/{size}/stage{stage}'
            flat = feature.contiguous().flatten().double().numpy()
            samples = flat[:: max(1, flat.size // 1024)][:1024]
            mean, std = GOLDEN[f'{key}/mean_std']
            assert feature.shape == tuple(GOLDEN[f'{key}/shape'])
            moments = [flat.mean(), flat.std(ddof=1)]
            np.testing.assert_allclose(moments, [mean, std], rtol=0, atol=1e-4 * std)
            deviations[key] = np.abs(samples - GOLDEN[f'{key}/samples']).max() / std
    worst = max(deviations, key=deviations.get)
    print(f'\n{arch}: largest deviation {deviations[worst]:.1e} standard deviations, at {worst}')
    assert deviations[worst] < 1e-4
