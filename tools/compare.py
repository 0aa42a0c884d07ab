"""Writes docs/compare.md and its plots from recorded measurements and published figures.

The measurements are what `tools/benchmark.py` records of the backbones that docs/compare.yml lists,
for which this tool has the option --measure; the published figures are looked up where that file
says that they stand. Nothing in the tables is typed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml

from mmhatnet import cli
from mmhatnet.compare import FORMULATIONS, write_comparison
from mmhatnet.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ['8x3x224x224', '1x3x896x1344']


@cli.exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        '--measure',
        nargs=argparse.REMAINDER,
        help='first run tools/benchmark.py, with what follows',
    )
    add('--json', default='compare.json', help='record of the measurements, in the folder --docs')
    add('--docs', type=Path, default=ROOT / 'docs', help='folder of the output')
    args = parser.parse_args()
    source = ROOT / 'docs' / 'compare.yml'
    if not source.is_file():
        raise DataError(f'There is no {source}: this page is written in a checkout.')
    backbones = yaml.safe_load(source.read_text())
    record = args.docs / args.json
    if args.measure is not None:
        args.docs.mkdir(parents=True, exist_ok=True)
        work = Path('work_dirs', 'compare')
        work.mkdir(parents=True, exist_ok=True)
        settings = {name: entry['settings'] for name, entry in backbones.items()}
        (work / 'backbones.py').write_text(f'backbones = {settings!r}\n')
        names = dict.fromkeys([*backbones, *FORMULATIONS])
        command = [sys.executable, ROOT / 'tools' / 'benchmark.py', *names]
        command += ['--config', work / 'backbones.py', '--out', work]
        subprocess.run([*command, '--shapes', *SHAPES, *args.measure], check=True)
        record.write_text((work / 'benchmark.json').read_text())
    if not record.is_file():
        parser.error(f'there is no record {record}: --measure makes one')
    toy = json.loads((ROOT / 'docs' / 'compare_toy.json').read_text())
    measured = json.loads(record.read_text())
    write_comparison(backbones, measured, toy, ROOT, args.docs, record.name)


if __name__ == '__main__':
    main()
