"""Visualizations show a limited number of detections, and what they leave out is said."""

import json
from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from predicting import random_job

from mmhatnet.shown import MOST_SHOWN, Tally, best_of, highest_score
from mmhatnet_cli import command_of, parser_of

# Random weights give scores around 0.2 for all proposals.
FIVE = ['model.test_cfg.rcnn.score_thr=0', 'model.test_cfg.rcnn.max_per_img=5']
TWO = ['model.test_cfg.rcnn.score_thr=0', 'model.test_cfg.rcnn.max_per_img=2']


def written(out_dir: Path) -> list[dict]:
    return json.loads((out_dir / 'predictions.json').read_text())


def drawn(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob('**/*.jpg')}


def test_best_of_keeps_the_order_and_the_sample() -> None:
    scores = torch.tensor([0.2, 0.9, 0.1, 0.5])
    sample = DetDataSample(pred_instances=InstanceData(scores=scores, labels=torch.arange(4)))
    assert best_of(sample, 2).pred_instances.labels.tolist() == [1, 3]
    assert best_of(sample, 3).pred_instances.labels.tolist() == [0, 1, 3]
    assert best_of(sample, 4) is sample and len(sample.pred_instances) == 4
    assert highest_score(sample) == pytest.approx(0.9)
    sample.pred_instances = sample.pred_instances[:0]
    assert highest_score(sample) is None


def test_the_command_has_the_default_of_the_function() -> None:
    assert parser_of(command_of('predict')).get_default('max_drawn') == MOST_SHOWN


def test_tallies_of_processes_are_merged() -> None:
    first, second = Tally(), Tally()
    first.add(found=0, highest=None, most=3)
    assert 'returns no detection' in first.nothing_found('0.3')
    second.add(found=0, highest=0.25, most=3)
    merged = Tally().merge([first, second])
    assert merged.nothing_found('0.3').startswith(
        'No detection has a score above 0.3: the highest is 0.2500.'
    )
    merged.add(found=5, highest=0.5, most=3)
    assert not merged.nothing_found('0.3')
    assert '3 best detections of an image are drawn: 2 more, in 1 of 3' in merged.too_many(3)
    assert not Tally().nothing_found('0.3') and not Tally().too_many(3)


def test_predictions_draw_the_best_and_keep_all(
    run_tool, toy_data: Path, tmp_path: Path, capsys
) -> None:
    job, folder = random_job('maskrcnn', tmp_path), toy_data / 'data/toy/coco/val2017'

    def predict(name: str, threshold: float, *args: object) -> str:
        options = ['--score-thr', threshold, '--out-dir', tmp_path / name, '--device', 'cpu']
        run_tool('predict', *job, folder, *options, *args)
        return capsys.readouterr().out

    limited = predict('limited', 0, '--max-drawn', 2, '--cfg-options', *FIVE)
    assert (
        'Only the 2 best detections of an image are drawn: 12 more, in 4 of 4 images, are not. '
        'predictions.json has all. --max-drawn changes the limit.\n'
    ) in limited
    found = written(tmp_path / 'limited')
    assert len(found) == 20
    assert 'detections of an image' not in predict('two', 0, '--cfg-options', *TWO)
    assert drawn(tmp_path / 'limited') == drawn(tmp_path / 'two')

    nothing = predict('nothing', 0.999, '--cfg-options', *FIVE)
    highest = max(result['score'] for result in found)
    line = f'No detection has a score above 0.999 (--score-thr): the highest is {highest:.4f}.'
    assert f'{line} Train longer, or lower the threshold.\n' in nothing
    assert written(tmp_path / 'nothing') == []


def test_a_test_draws_the_best(run_tool, toy_data: Path, tmp_path: Path, capsys) -> None:
    job = random_job('maskrcnn', tmp_path)

    def test(name: str, most: int) -> str:
        args = ['--work-dir', tmp_path / 'test', '--show-dir', tmp_path / name, '--no-report']
        options = ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
        options += ['default_hooks.visualization.score_thr=0']
        options += ['model.test_cfg.rcnn.score_thr=0', f'model.test_cfg.rcnn.max_per_img={most}']
        run_tool('test', *job, *args, '--cfg-options', *options)
        return capsys.readouterr().out

    limited = test('limited', 40)
    assert 'Only the 30 best detections of an image are drawn: 40 more, in 4 of 4' in limited
    assert 'detections of an image' not in test('thirty', 30)
    assert len(drawn(tmp_path / 'limited')) == 4
    assert drawn(tmp_path / 'limited') == drawn(tmp_path / 'thirty')
