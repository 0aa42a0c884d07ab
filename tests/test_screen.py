"""What the tools show on the screen, and what is in the log file alone."""

import io
import logging
import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from experiments import TOY
from mmengine.logging import MMLogger, print_log
from processes import Script
from test_distributed import free_port
from training_jobs import write_job

from mmhatnet.cli import Screen
from mmhatnet.cli.screen import shortened

TRAIN = Path(__file__).parents[1] / 'tools' / 'train.py'
LABELS = ['job', 'data', 'model', 'weights', 'device', 'recipe', 'folder', 'log']
USER_CODE = """
import warnings
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class UserHook(Hook):
    def before_train(self, runner):
        print('printed by the user')
        runner.logger.info('logged by the user')
        runner.logger.warning('warned by the user')
"""


@pytest.fixture(scope='module')
def trained(toy_data: Path, tmp_path_factory) -> tuple[Path, list[str]]:
    """Trains a detector, and returns its folder and the lines of its output."""
    folder = tmp_path_factory.mktemp('screen')
    (folder / 'user_code.py').write_text(USER_CODE)
    config = write_job(
        'maskrcnn',
        folder / 'job.py',
        **{
            'train_cfg': dict(max_epochs=2, val_interval=1),
            'default_hooks.checkpoint.save_best': 'coco/bbox_mAP',
            'default_hooks.checkpoint.rule': 'greater',
            'custom_hooks': [dict(type='UserHook')],
            'custom_imports.imports': ['mmhatnet.openmmlab.setup', 'user_code'],
        },
    )
    work = folder / 'work'
    run = Script(
        *(TRAIN, config, '--work-dir', work),
        log=folder / 'out',
        cwd=toy_data,
        PYTHONPATH=f'{folder}:{TRAIN.parents[1]}',
    )
    return folder, run.wait().splitlines()


def labelled(lines: list[str]) -> dict[str, str]:
    """Returns the text of each label, which may have several lines."""
    found, label = {}, None
    for line in lines:
        if match := re.match(r'([a-z]+) {2,}(?=\S)', line):
            label = match[1]
        elif not line.startswith('         '):
            label = None
        if label:
            found[label] = f'{found.get(label, "")}\n{line[9:]}'.strip()
    return found


def log_of(work: Path) -> str:
    (log,) = work.glob('*/*.log')
    return log.read_text()


def test_the_first_screen(trained) -> None:
    _, lines = trained
    before = next(number for number, line in enumerate(lines) if 'loss' in line)
    of_user = ['printed by the user', 'logged by the user']
    usual = [
        line for line in lines[:before] if line not in of_user and not line.startswith('warning ')
    ]
    assert len(usual) == 10, '\n'.join(lines[:before])
    said = labelled(lines[:before])
    assert [label for label in said if label != 'warning'] == LABELS
    assert said['job'].endswith('job.py (MMDetection)')
    train, val, classes = said['data'].splitlines()
    assert re.match(r'train: 7 images, \d+ objects, in data/toy/coco/.*_train2017\.json', train)
    assert re.match(r'val:   2 images, \d+ objects?, in data/toy/coco/.*_val2017\.json', val)
    assert classes == '4 classes: car, umbrella, sports ball, kite'
    assert re.match(r'MaskRCNN with HATNet, \d\.\d million parameters$', said['model'])
    assert said['weights'] == 'random: no checkpoint is named'
    assert said['device'].endswith(', float32, 1 process')
    assert said['recipe'] == (
        '2 epochs of 4 iterations, batch size 2, AdamW, learning rate 0.0007 after 40 iterations '
        'of warm-up'
    )
    assert 'indices=2 leaves out 2 of 4 images' in said['warning']
    assert 'LinearLR ends after 40 iterations' in said['warning']
    assert 'warned by the user' in said['warning']
    assert set(of_user) < set(lines)


def test_each_epoch_and_the_end(trained) -> None:
    folder, lines = trained
    number = re.compile(r'(\S+) (\d\S*)')
    epochs = [line for line in lines if re.match(r'epoch \d of 2 {2}', line)]
    assert len(epochs) == 2
    for line in epochs:
        found = dict(number.findall(line.partition('  ')[2]))
        kinds = [f'coco/{kind}_mAP{iou}' for kind in ('bbox', 'segm') for iou in ('', '_50', '_75')]
        assert list(found) == ['loss', *kinds]
    progress = [line for line in lines if line.startswith('Epoch(train) ')]
    assert len(progress) == 8 and all('eta: ' in line for line in progress)
    said = labelled(lines)
    assert re.match(r'2 epochs in 0:\d\d:\d\d$', said['done'])
    best, last = said['best'].partition(' ')[0], said['last']
    assert Path(best).name.startswith('best_coco_bbox_mAP') and Path(best).is_file()
    assert re.search(r'\(coco/bbox_mAP \d\S*\)$', said['best'])
    assert Path(last) == folder / 'work' / 'epoch_2.pth'
    words = shlex.split(said['next'])
    assert Path(words[0]).name.startswith('python')
    assert [Path(w).exists() for w in words[1:]] == [True] * 3


def test_the_rest_is_in_the_log_file(trained) -> None:
    folder, lines = trained
    text, log = '\n'.join(lines), log_of(folder / 'work')
    for words in (
        *('System environment:', 'Config:', 'Hooks will be executed in the following order'),
        *('creating index...', 'Evaluating bbox...', 'Average Precision  (AP)', 'area= large'),
        *('Checkpoints will be saved to', 'Epoch(val) [1][2/2]', 'coco/bbox_mAP_l: ', 'deprecated'),
    ):
        assert words in log and words not in text
    logged = ' '.join(log.split())
    missing = [line for line in lines if ' '.join(line.split()) not in logged]
    # Warnings begin without the label there.
    assert [line for line in missing if not line.startswith('warning ')] == []
    assert re.search(
        r'^\d{4}/\d\d/\d\d [\d:]{8} - mmengine - INFO - Epoch\(train\) \[1\]', log, re.M
    )
    assert not re.search(r'[^\n\x20-\x7e]', text), 'no control characters in a file'


def test_the_screen_of_a_test(trained, run_tool_captured, tmp_path, monkeypatch) -> None:
    folder, _ = trained
    monkeypatch.syspath_prepend(folder)
    found = run_tool_captured(
        *('test', folder / 'job.py', folder / 'work' / 'epoch_2.pth', '--work-dir', tmp_path),
        *('--cfg-options', 'test_evaluator.classwise=True'),
    )
    assert found.returncode == 0
    lines = found.stdout.splitlines()
    said = labelled(lines)
    assert [x for x in said if x != 'warning'] == [
        *(x for x in LABELS if x != 'recipe'),
        'result',
        'report',
    ]
    assert said['weights'].endswith('epoch_2.pth')
    assert re.search(r'^coco/bbox_mAP +\d', said['result'], re.M)
    large = re.search(r'^coco/segm_mAP_l +(.*)', said['result'], re.M)[1]
    assert large == '-1: there is no object above 96 x 96 pixels'
    assert '| sports ball |' in found.stdout, 'the table of classes is what a test is for'
    assert 'Average Precision' not in found.stdout and 'System environment' not in found.stdout


def test_verbose(run_tool_captured, tmp_path) -> None:
    config = write_job('imagenet', tmp_path / 'job.py', custom_hooks=[])
    options = ['--verbose', '--cfg-options', 'train_cfg.max_epochs=1']
    found = run_tool_captured('train', config, '--work-dir', tmp_path / 'work', *options)
    assert found.returncode == 0
    for words in ('System environment:', 'Config:', 'Hooks will be executed', 'Epoch(val) [1]'):
        assert found.stdout.count(words) >= 1
    assert [label for label in labelled(found.stdout.splitlines()) if label in LABELS] == LABELS
    # Nothing is there twice.
    assert found.stdout.count('System environment:') == 1
    assert log_of(tmp_path / 'work').count('System environment:') == 1


def test_only_the_first_process_writes(toy_data: Path, tmp_path: Path) -> None:
    settings = {'custom_hooks': [], 'env_cfg.dist_cfg.backend': 'gloo', 'train_cfg.max_epochs': 1}
    config = write_job('imagenet', tmp_path / 'job.py', **settings)
    variables = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    words = [TRAIN, config, '--work-dir', tmp_path / 'work', '--launcher', 'pytorch']
    scripts = [
        Script(
            *words,
            log=tmp_path / f'{rank}.out',
            cwd=toy_data,
            **dict(variables, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in range(2)
    ]
    first, second = (script.wait() for script in scripts)
    assert labelled(first.splitlines())['device'].endswith(', 2 processes')
    assert second == ''


def test_a_job_that_fails_early_shows_its_warnings(run_tool_captured, tmp_path) -> None:
    torch.save(dict(state_dict=dict(other=torch.ones(1))), tmp_path / 'other.pth')
    options = ['val_dataloader.dataset.indices=2', f'load_from={tmp_path}/other.pth']
    words = ['--work-dir', tmp_path / 'work', '--cfg-options', *options]
    found = run_tool_captured('train', TOY['maskrcnn_hatnet_toy'], *words)
    assert found.returncode == 1 and 'holds none of the' in found.stderr
    assert 'indices=2 leaves out 2 of 4 images' in found.stdout
    assert 'System environment' not in found.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_as(module: str, code: str) -> None:
    exec(compile(code, f'/lib/{module.replace(".", "/")}.py', 'exec'), {'__name__': module})


def test_what_is_shown_follows_from_who_writes(capsys) -> None:
    warn = 'import warnings; warnings.warn("warning of " + __name__)'
    with warnings.catch_warnings(record=True) as caught, Screen() as screen:
        warnings.simplefilter('always')
        for module in ('pycocotools.coco', 'mmdet.datasets', 'my_project.models', 'pdb'):
            run_as(module, f'print("text of " + __name__); {warn}')
        print_log('"FileClient" will be deprecated in future.', 'current', logging.WARNING)
        print_log('this matters', 'current', logging.WARNING)
        print_log('this fails', 'current', logging.ERROR)
        print_log('Exp name: x', 'current')
        MMLogger.get_current_instance().info('text of this file')
    shown = capsys.readouterr().out
    expected = ['text of my_project.models', 'text of pdb', 'text of this file']
    assert [line for line in shown.splitlines() if 'text of' in line] == expected
    assert 'warning  this matters' in shown and 'this fails' in shown
    assert 'FileClient' not in shown and 'Exp name' not in shown
    assert [str(w.message) for w in caught] == ['warning of my_project.models', 'warning of pdb']
    assert screen.hidden == 3


def test_warnings_wait_for_the_overview_and_never_get_lost(capsys) -> None:
    with pytest.raises(ValueError), Screen() as screen:
        MMLogger.get_current_instance().warning('this is odd')
        print('first')
        raise ValueError
    assert capsys.readouterr().out.splitlines() == ['first', 'warning  this is odd']
    screen.show_held()
    assert capsys.readouterr().out == ''


def test_a_model_that_finds_nothing(capsys) -> None:
    """MMDetection calls it an error, and MMEngine says what it then leaves out."""
    with Screen() as screen:
        screen.show_held()
        logger = MMLogger.get_current_instance()
        logger.error('The testing results of the whole dataset is empty.')
        logger.warning('Since `metrics` is an empty dict, the behavior to save is skipped')
    (shown,) = capsys.readouterr().out.splitlines()
    assert shown.startswith('warning  the model returns no detection for any image')
    assert screen.hidden == 1


def test_the_log_file_has_what_was_written_before_it(tmp_path: Path, capsys) -> None:
    with Screen() as screen:
        run_as('mmdet.datasets', 'print("Could not import OneDL.")')
        early = MMLogger.get_current_instance()
        early.warning('this is odd')
        screen.adopt(MMLogger.get_instance('later', log_file=str(tmp_path / 'log')))
        print_log('of the early one', early)
        run_as('pycocotools.coco', 'print("creating", end=" "); print("index...")')
        screen.show('job', 'a\nb')
        run_as('mmdet.datasets', 'print("no end", end="")')
    log = (tmp_path / 'log').read_text()
    for words in (
        'Could not import OneDL.',
        'this is odd',
        'creating index...',
        'job      a\nb',
        'no end',
        'of the early one',
    ):
        assert log.count(words) == 1
    assert capsys.readouterr().out.splitlines() == [
        'job      a',
        '         b',
        'warning  this is odd',
    ]


def test_terminals_have_a_progress_bar(monkeypatch) -> None:
    monkeypatch.setenv('TERM', 'xterm-256color')
    monkeypatch.setattr('mmhatnet.cli.screen.REFRESH', 0)
    terminal = Terminal()
    monkeypatch.setattr('sys.stdout', terminal)
    with Screen() as screen:
        print_log('Epoch(train) [1][1/9]  eta: 0:00:10  loss: 1', 'current')
        screen.advance('epoch 1 of 2', 3, 9, '3 of 9  loss 1.5  0:00:10 left')
        print('printed')
        screen.advance('epoch 1 of 2', 4, 9, '4 of 9')
    plain = re.sub(r'\x1b\[[\d;?]*\w', '', terminal.getvalue())
    assert 'Epoch(train)' not in plain, 'the bar takes its place'
    assert re.search(r'epoch 1 of 2 \S+ 3 of 9 {2}loss 1\.5 {2}0:00:10 left', plain)
    assert re.search(r'(^|[\r\n])printed\n', plain), 'a line of its own'
    assert terminal.getvalue().endswith('\x1b[?25h\r\x1b[1A\x1b[2K'), 'nothing of it stays'


@pytest.mark.parametrize('terminal', [False, True])
def test_a_job_goes_on_without_a_screen(terminal, monkeypatch, tmp_path) -> None:
    """The pipe is closed, or the terminal is gone."""

    class Broken(io.StringIO):
        def isatty(self) -> bool:
            return terminal

        def write(self, text: str) -> int:
            raise BrokenPipeError('gone')

    monkeypatch.setenv('TERM', 'xterm-256color')
    monkeypatch.setattr('sys.stdout', Broken())
    with Screen() as screen:
        screen.adopt(MMLogger.get_instance('later', log_file=str(tmp_path / 'log')))
        screen.show('job', 'begins')
        screen.advance('epoch 1 of 2', 3, 9, '3 of 9')
        print_log('Epoch(train) [1][1/9]  eta: 0:00:10  loss: 1', 'current')
    assert 'begins' in (tmp_path / 'log').read_text()


def test_letters_that_the_screen_lacks(monkeypatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr('sys.stdout', io.TextIOWrapper(raw, encoding='ascii'))
    with Screen() as screen:
        screen.show('data', '2 classes: Häuser, 犬')
    assert raw.getvalue().decode() == 'data     2 classes: H\\xe4user, \\u72ac\n'


def test_long_messages_are_shortened() -> None:
    keys = [f'backbone.stages.{i}.attention.weight' for i in range(700)]
    text = f'The model and loaded state dict do not match\n\nunexpected key: {", ".join(keys)}\n'
    assert len(text) > 24_000
    lines = shortened(text).splitlines()
    assert lines == [
        'The model and loaded state dict do not match',
        f'unexpected key: {", ".join(keys[:3])} and 697 more',
        '(all of it is in the log file)',
    ]
    assert shortened('\n'.join('abcdefg')).splitlines()[4] == 'and 3 more lines'
    assert len(shortened('x' * 9999)) < 400
    assert shortened('short, and sweet') == 'short, and sweet'
    assert logging.getLogger('mmengine').handlers == []
