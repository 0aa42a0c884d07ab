"""The commands in the documentation work, and its figures are the recorded ones.

The tests run each block of shell or Python as it is, in a folder with small synthetic data. They
append options that shorten training and reduce data. The blocks of a page run in order and share
the folder. If a block cannot run, a comment before it gives the reason, as in
`<!-- not run: needs COCO -->`. The tests still parse it: scripts must exist and accept the options,
and configs must load.
"""

import argparse
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from conftest import forget_earlier_runs
from experiments import CONFIGS, TOY, as_text
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from synthetic import synthetic_checkpoint

import mmhatnet_cli
from mmhatnet.cli import merge_options, parse_settings, read_config

ROOT = CONFIGS.parent
PAGES = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
SLOW = ('openmmlab_tools',)
BLOCK = re.compile(r'^(?:<!-- not run: (.+) -->\n)?```(.*)\n([\s\S]*?)^```$', re.MULTILINE)
INLINE = re.compile(r'`((?:(?:python )?tools/\w+\.(?:py|sh)|mmhatnet [a-z][a-z-]*)(?: [^`]+)?)`')
FROM_SHELL = re.compile(r'(\w+)=(\$\(.*\)\S*|\S*\$\S+)')
RUN_BY_CI = re.findall(r'make --no-print-directory (\w+)', (ROOT / '.ci' / 'run').read_text())
RESULTS = json.loads((ROOT / 'docs' / 'results.json').read_text())
TITLES = dict(
    maskrcnn='Mask R-CNN', retinanet='RetinaNet', semfpn='Semantic FPN', imagenet='Classification'
)


@pytest.mark.parametrize('job', TOY)
def test_stated_results_are_the_recorded_ones(job: str) -> None:
    by_seed = [figures for _, figures in sorted(RESULTS[job].items())]
    assert len(by_seed) >= 2 and list(RESULTS[job]) == [str(seed) for seed in range(len(by_seed))]
    title = TITLES[job.partition('_')[0]]
    lines = (ROOT / 'docs' / 'evidence.md').read_text().splitlines()
    (row,) = (line for line in lines if line.startswith(f'| {title} | ') and 'seeds' in line)
    for metric, goal in Config.fromfile(TOY[job]).goals.items():
        factor = 100 if metric.startswith('coco') else 1
        assert min(figures[metric] for figures in by_seed) >= goal
        figures = ', '.join(f'{factor * figures[metric]:.1f}' for figures in by_seed)
        assert f'{figures} %' in row


class Block(NamedTuple):
    place: str
    language: str
    text: str
    reason: str | None  # why it is not run


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in BLOCK.finditer(text):
        reason, language, body = match.groups()
        line = text.count('\n', 0, match.start(2)) + 1
        yield Block(f'{page.relative_to(ROOT)}:{line}', language, body, reason)


@pytest.fixture
def project(toy_data: Path, tmp_path: Path, monkeypatch) -> Path:
    """Makes a folder like a checkout, with the data, checkpoint and images that pages assume."""
    for name in ('configs', 'tools', 'examples'):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(toy_data / 'data', tmp_path / 'data')
    shutil.copytree(toy_data / 'data' / 'toy' / 'coco', tmp_path / 'my_photos')
    torch.save(synthetic_checkpoint('tiny'), tmp_path / 'HAT-Net_Tiny.pth')
    monkeypatch.chdir(tmp_path)
    # Formatting the dumped config takes longer than training.
    monkeypatch.setattr(Config, 'pretty_text', property(lambda cfg: as_text(cfg.to_dict())))
    return tmp_path


def shortening_options(command: str, words: list[str]) -> list[str]:
    """Returns options for a command that reduce data and training."""
    if command == 'make-toy-data':
        return ['--coco', '8', '4', '--ade', '8', '2', '--imagenet', '8', '2']
    of_recipe = [f'model.test_cfg.{part}.max_per_img=8' for part in ('rpn', 'rcnn')]
    of_recipe += ['model.train_cfg.rcnn.sampler.num=32']
    for split, place in dict(train=2, val=1, test=1).items():
        of_recipe += [f'{split}_dataloader.dataset.pipeline.{place}.scale=(96,96)']
    if command == 'predict' and 'toy' not in words[0]:
        return ['--cfg-options', *of_recipe]
    if command not in ('train', 'test'):
        return []
    cfg = Config.fromfile(words[0])
    options = ['train_dataloader.batch_size=2', 'default_hooks.logger.interval=1']
    for split in ('train', 'val', 'test'):
        loader = f'{split}_dataloader'
        options += [f'{loader}.num_workers=0', f'{loader}.persistent_workers=False']
    options += ['default_hooks.checkpoint.save_optimizer=False']
    if cfg.default_scope == 'mmseg':
        options += ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
        options += ['default_hooks.checkpoint.interval=2']
    else:
        options += ['train_dataloader.dataset.indices=2']
    if cfg.default_scope == 'mmpretrain':
        options += ['train_cfg.val_interval=12', 'default_hooks.checkpoint.interval=12']
    if 'toy' not in words[0]:
        options += ['train_cfg.max_epochs=1', 'model.backbone.init_cfg=None', *of_recipe]
    return options if '--cfg-options' in words else ['--cfg-options', *options]


def run_script(script: str, words: list[str], monkeypatch) -> None:
    forget_earlier_runs()
    monkeypatch.setattr(sys, 'argv', [script, *words])
    monkeypatch.syspath_prepend(Path(script).parent)
    try:
        runpy.run_path(script, run_name='__main__')
    except SystemExit as ended:
        assert not ended.code, f'{words} ends {script}: {ended.code}'


def run_command(words: list[str], monkeypatch) -> None:
    """Runs ``mmhatnet COMMAND``, with less data and training."""
    forget_earlier_runs()
    name, *options = words
    monkeypatch.setattr(sys, 'argv', ['mmhatnet', *words])
    try:
        mmhatnet_cli.main([name, *options, *shortening_options(name, options)])
    except SystemExit as ended:
        assert not ended.code, f'{words} ends mmhatnet: {ended.code}'


class Parsed(Exception):
    """Ends a script after it has parsed its options."""


def require_parsable(words: list[str], monkeypatch) -> None:
    """Checks that a command or script exists, accepts the options and can load its config."""
    if 'mmhatnet' in words and words[0] in ('mmhatnet', 'srun', 'torchrun'):
        _, name, *options = words[words.index('mmhatnet') :]
        return require_config(
            mmhatnet_cli.parser_of(mmhatnet_cli.command_of(name)).parse_args(options)
        )
    names = [word for word in words if word.endswith(('.py', '.sh'))]
    if not names or words[1] in ('-c', '-m'):
        return
    script, options = names[0], words[words.index(names[0]) + 1 :]
    assert Path(script).is_file(), script
    if script.endswith('.sh'):
        return [Config.fromfile(word) for word in names[1:] if 'NAME' not in word]
    parse_args = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, *args, **kwargs):
        raise Parsed(parse_args(parser, *args, **kwargs))

    with monkeypatch.context() as here:
        here.setattr(argparse.ArgumentParser, 'parse_args', parse)
        try:
            run_script(script, options, here)
        except Parsed as parsed:
            (args,) = parsed.args
        except ImportError:  # another project's tool may need packages that are missing
            assert not Path(script).resolve().is_relative_to(ROOT / 'tools')
            return
    require_config(args)


def require_config(args: argparse.Namespace) -> None:
    """Checks that the config of a command exists, and has the settings that options change."""
    config = getattr(args, 'config', None)
    if config and config not in ('CONFIG', 'config.py'):
        settings = parse_settings(getattr(args, 'cfg_options', None) or ())
        merge_options(read_config(config), settings)


def run_shell(block: Block, monkeypatch) -> None:
    for line in re.split(r'\n| && ', block.text.replace('\\\n', ' ')):
        if match := FROM_SHELL.fullmatch(line):
            name, value = match.groups()
            command = ['bash', '-ec', f'value={value}; printf %s "$value"']
            # As in an activated environment.
            path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
            output = subprocess.run(
                command, check=True, capture_output=True, text=True, env=os.environ | {'PATH': path}
            ).stdout
            assert output, line
            monkeypatch.setenv(name, output)
            continue
        words = shlex.split(os.path.expandvars(line), comments=True)
        with monkeypatch.context() as here:
            while words and re.match(r'\w+=', words[0]):
                here.setenv(*words.pop(0).split('=', 1))
            if block.reason and words:
                require_parsable(words, here)
            elif words[:1] == ['mmhatnet']:
                run_command(words[1:], here)
            elif words[:1] == ['python'] and words[1].endswith('.py'):
                run_script(words[1], words[2:], here)
            elif words and not (words[0] == 'make' and words[1] in RUN_BY_CI):
                pytest.fail(f'Neither this test nor CI runs it; give the reason before it: {line}')


def run_python(block: Block, project: Path) -> None:
    """Runs a snippet, or builds the model of a config. A block that is not run is compiled."""
    forget_earlier_runs()
    code = compile(block.text, block.place, 'exec')
    if block.reason:
        return
    if '_base_ =' not in block.text:
        return exec(code, {})
    path = project / 'inheriting.py'
    path.write_text(block.text)
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    assert any(type(m).__name__ == 'HATNet' for m in MODELS.build(cfg.model).modules())


@pytest.mark.parametrize(
    'page',
    [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem in SLOW)) for p in PAGES],
)
def test_commands_of_a_page_run(page: Path, project: Path, monkeypatch) -> None:
    for block in blocks(page):
        assert block.language in ('python', 'shell', 'text'), f'{block.place}: {block.language}'
        try:
            if block.language == 'shell':
                run_shell(block, monkeypatch)
            elif block.language == 'python':
                run_python(block, project)
        except Exception as error:
            error.add_note(f'in the block of {block.place}')
            raise
    # Commands within text and tables are parsed, unless they contain placeholders.
    for command in INLINE.findall(page.read_text()):
        words = shlex.split(command)
        if words[0] == 'mmhatnet':
            assert words[1] in mmhatnet_cli.NAMES, command
        else:
            (script,) = re.findall(r'tools/\w+\.\w+', command)
            assert Path(script).is_file(), command
        whole = len(words) > 2 and words[2][0] != '-' and words[0] in ('mmhatnet', 'python')
        if whole and not re.search(r'[A-Z]{3}|\.\.\.|_config\.py', command):
            require_parsable(words, monkeypatch)


def test_first_snippet_of_the_readme_runs_as_pasted(tmp_path: Path, monkeypatch, capsys) -> None:
    """It needs no file, and prints what the page says."""
    monkeypatch.chdir(tmp_path)
    first = next(block for block in blocks(PAGES[0]) if block.language == 'python')
    following = list(blocks(PAGES[0]))
    output = following[following.index(first) + 1]
    assert first.reason is None and output.language == 'text'
    exec(compile(first.text, first.place, 'exec'), {})
    assert capsys.readouterr().out == output.text


def test_the_public_address_is_one() -> None:
    """It is in the metadata, and in the line that clones the repository."""
    urls = dict(re.findall(r'(?m)^(\w+) = "(http\S+)"$', (ROOT / 'pyproject.toml').read_text()))
    assert all(urls[name].startswith(urls['Source']) for name in ('Documentation', 'Issues'))
    (cloned,) = re.findall(r'git clone (\S+)\.git', PAGES[0].read_text())
    assert cloned == urls['Source']


def test_models_of_the_readme_have_the_figures_of_the_metafiles() -> None:
    """A row for each variant of the other backbones."""
    text, rows = PAGES[0].read_text(), {}
    links = dict(re.findall(r'\[`(\w+)`\]\(configs/(\w+)/README\.md\)', text))
    for line in text.splitlines():
        if match := re.match(r'\| \[?`(\w+)`\S* \| `(\w+)` \| (.+) \|', line):
            rows[links[match[1]], match[2]] = match[3].split(' | ')
    expected = {}
    for network in links.values():
        metafile = yaml.safe_load((ROOT / 'configs' / network / 'metafile.yml').read_text())
        of_tasks = {model['Name']: model for model in metafile['Models']}
        for name, model in of_tasks.items():
            if match := re.fullmatch(rf'{network}-(\S+)_\d+xb\d+_in1k', name):
                variant = match[1]
                short = variant if variant[0].isdigit() or 'stl' in variant else variant[0]
                names = name, f'mask-rcnn_{network}-{short}_fpn_1x_coco'
                names += (f'{network}-{short}_fpn_4xb4-80k_ade20k-512x512',)
                figures = [' / '.join(map(str, metrics_of(of_tasks.get(n, {})))) for n in names]
                parameters = f'{model["Metadata"]["Parameters"] / 1e6:.1f}'
                expected[network, variant.replace('-', '_')] = [parameters, *figures]
    assert rows.keys() == expected.keys() and len(rows) == 20
    for key, figures in expected.items():
        assert [re.sub('not .*', '', cell) for cell in rows[key]] == figures, key


def metrics_of(model: dict) -> list[float]:
    return [value for result in model.get('Results', []) for value in result['Metrics'].values()]
