"""Stores the results of mmcv's compiled operators on random inputs in mmcv_operators.npz.

It needs an mmcv with compiled operators. docs/operators.md explains how to install it.
"""

import sys
from pathlib import Path

import mmcv
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from operators import CASES, SEED, STORED, Draw, find_compiled, use


def main() -> None:
    compiled = find_compiled(Path(mmcv.__file__).parent)
    if compiled is None:
        raise SystemExit('mmcv has no compiled operators here.')
    with use(compiled):
        results = {
            f'{case.__name__}/{number}': result.numpy()
            for case in CASES
            for number, result in enumerate(case(Draw(SEED)))
        }
    np.savez_compressed(STORED, **results)
    print(f'{len(results)} results, {STORED.stat().st_size} bytes, of mmcv {mmcv.__version__}')


if __name__ == '__main__':
    main()
