"""The commands of docs/training.md do what the page says."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import loops
from training_jobs import assert_equal_training, write_job

from mmhatnet.cli import merge_options
from mmhatnet.config_checks import require_known_settings
from mmhatnet.new_config import write_config

PAGE = Path(__file__).parents[1] / 'docs' / 'training.md'
SAVE_BEST, EARLY_STOPPING = 'The best checkpoint', 'Early stopping'
EMA, AMP, ACCUMULATION = 'Average of the weights (EMA)', 'Mixed precision', 'Gradient accumulation'


def command(section: str) -> list[str]:
    """Returns the words of the only command in a section of the page."""
    text = PAGE.read_text().partition(f'\n## {section}\n')[2].partition('\n## ')[0]
    (block,) = re.findall(r'```shell\n(.*?)```', text, re.DOTALL)
    (line,) = block.replace('\\\n', ' ').splitlines()
    return shlex.split(line)


def settings(*sections: str) -> list[str]:
    """Returns the settings of sections, as one --cfg-options takes them."""
    commands = [command(section) for section in sections]
    start = ['mmhatnet', 'train', 'config.py', '--cfg-options']
    assert all(words[:4] == start for words in commands)
    return [setting for words in commands for setting in words[4:]]


@pytest.fixture
def predicting(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """Records the weights with which the first batch of each validation and test is predicted."""
    seen = []

    def recorded(run_iter):
        def run(loop, index, batch):
            if index == 0:
                weights = loop.runner.model.state_dict()
                seen.append({key: value.clone() for key, value in weights.items()})
            run_iter(loop, index, batch)

        return run

    for loop in (loops.ValLoop, loops.TestLoop):
        monkeypatch.setattr(loop, 'run_iter', recorded(loop.run_iter))
    return seen


def equal(weights: dict, others: dict) -> bool:
    """Returns whether two models have the same weights. A wrapper precedes the names."""
    weights, others = (
        {key.removeprefix('module.'): value for key, value in one.items() if key != 'steps'}
        for one in (weights, others)
    )
    assert weights.keys() == others.keys()
    return all(torch.equal(value, others[key]) for key, value in weights.items())


def test_best_checkpoint_early_stopping_and_average(
    run_tool, predicting, tmp_path: Path, capsys
) -> None:
    loop = dict(max_epochs=6, val_interval=1)
    config, work = write_job('maskrcnn', tmp_path / 'config.py', train_cfg=loop), tmp_path / 'work'
    options = settings(SAVE_BEST, EARLY_STOPPING, EMA)
    options += [f'default_hooks.early_stopping.{rest}' for rest in ('min_delta=2', 'patience=1')]
    run_tool('train', config, '--work-dir', work, '--cfg-options', *options)

    # No metric rises by 2, so the second validation is the last one.
    assert len(predicting) == 2 and not (work / 'epoch_3.pth').exists()
    assert re.search(r'done +2 epochs in .*, stopped early', capsys.readouterr().out)
    last = torch.load(work / 'epoch_2.pth', weights_only=False)
    assert equal(predicting[1], last['state_dict'])
    assert not equal(last['ema_state_dict'], last['state_dict']), 'the weights as trained'
    (best,) = work.glob('best_coco_bbox_mAP_epoch_*.pth')
    number = int(best.stem.rpartition('_')[2])
    best_weights = torch.load(best, weights_only=False)['state_dict']
    assert equal(predicting[number - 1], best_weights)

    # The config of the work folder has the hook, the other one has not.
    for path in (work / 'config.py', config):
        run_tool('test', path, best, '--work-dir', tmp_path / 'test')
        assert equal(predicting[-1], best_weights)


@pytest.mark.parametrize('job', ['semfpn', 'imagenet'])
def test_averages_are_resumed(job: str, run_tool, tmp_path: Path) -> None:
    config = write_job(job, tmp_path / 'config.py', custom_hooks=[])
    options = ['--cfg-options', *settings(EMA)]
    run_tool('train', config, '--work-dir', tmp_path / 'whole', *options)
    before_last = tmp_path / 'whole' / ('iter_6.pth' if job == 'semfpn' else 'epoch_2.pth')
    place = ['--work-dir', tmp_path / 'resumed', '--resume', before_last]
    run_tool('train', config, *place, *options)
    assert 'ema_state_dict' in torch.load(before_last, weights_only=False)
    assert_equal_training(tmp_path / 'resumed', tmp_path / 'whole')


def test_averages_are_what_augmented_tests_measure(run_tool, predicting, tmp_path: Path) -> None:
    config, work = write_job('imagenet', tmp_path / 'config.py'), tmp_path / 'work'
    run_tool('train', config, '--work-dir', work, '--cfg-options', 'train_cfg.max_epochs=1')
    weights = torch.load(work / 'epoch_1.pth', weights_only=False)
    tta = command('Test-time augmentation')[4:]
    for options in ([], tta):
        run_tool('test', config, work / 'epoch_1.pth', *options, '--work-dir', tmp_path / 'test')
        assert equal(predicting[-1], weights['state_dict']), options


def test_an_optimizer_steps_after_several_batches(run_tool, monkeypatch, tmp_path: Path) -> None:
    steps, step = [], OptimWrapper.step
    monkeypatch.setattr(OptimWrapper, 'step', lambda *args, **kw: steps.append(step(*args, **kw)))
    config = write_job('imagenet', tmp_path / 'config.py')
    options = [*settings(ACCUMULATION), 'train_cfg.max_epochs=2']
    run_tool('train', config, '--work-dir', tmp_path / 'work', '--cfg-options', *options)
    assert len(steps) == 2  # of 8 batches


@pytest.mark.skipif(torch.cuda.is_available(), reason='it trains on a GPU')
def test_mixed_precision_asks_for_a_gpu(run_tool_captured, tmp_path: Path) -> None:
    config, work = write_job('imagenet', tmp_path / 'config.py'), tmp_path / 'work'
    result = run_tool_captured('train', config, '--work-dir', work, *command(AMP)[3:])
    assert result.returncode == 1 and '--amp needs a GPU' in result.stderr
    assert not work.exists()


@pytest.mark.parametrize('kind', ['written', 'inherited'])
def test_settings_fit_configs(kind: str, toy_data: Path, tmp_path: Path, capsys) -> None:
    config = tmp_path / 'config.py'
    if kind == 'written':
        write_config(toy_data / 'data/toy/coco', config, None, 'tiny', None)
    else:
        snippet = re.search(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)[1]
        config.write_text(snippet)
    for section in (SAVE_BEST, EARLY_STOPPING, EMA, ACCUMULATION):
        cfg = Config.fromfile(config)
        given = dict(word.split('=') for word in settings(section))
        merge_options(cfg, given)
        require_known_settings(cfg, 'train', 'val')
        assert '--cfg-options' not in capsys.readouterr().out, 'a setting looks misspelt'
