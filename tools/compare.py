"""Writes docs/compare.md and its plots from recorded measurements and published figures.

--measure runs `tools/benchmark.py` for the backbones in docs/compare.yml and records the results.
Published figures come from that file and from the metafiles that it names.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml

from mmhatnet.compare import FORMULATIONS, write_comparison
from mmhatnet.errors import DataError
from mmhatnet_cli import exit_on_error
from mmhatnet_cli.options import local_path

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ['8x3x224x224', '1x3x896x1344']


@exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        '--measure',
        nargs=argparse.REMAINDER,
        help='first run tools/benchmark.py with the arguments that follow',
    )
    add('--json', default='compare.json', help='record of the measurements, in the folder --docs')
    add('--docs', type=local_path, default=ROOT / 'docs', help='folder of the output')
    args = parser.parse_args()
    source = ROOT / 'docs' / 'compare.yml'
    if not source.is_file():
        raise DataError(f'There is no {source}: run this tool in a checkout.')
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
        parser.error(f'there is no record {record}: create it with --measure')
    toy = json.loads((ROOT / 'docs' / 'compare_toy.json').read_text())
    measured = json.loads(record.read_text())
    write_comparison(backbones, measured, toy, ROOT, args.docs, record.name)


if __name__ == '__main__':
    main()
