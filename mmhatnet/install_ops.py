"""The command ``python -m mmhatnet.install_ops``: operators for an mmcv that has none compiled."""

import argparse

from mmhatnet.openmmlab import operators


def main() -> None:
    """Installs or removes the operators, and prints what was done."""
    parser = argparse.ArgumentParser(
        prog='python -m mmhatnet.install_ops',
        description='Give the installed mmcv operators that need no compiler. Compiled operators '
        'are left alone. Run it again after an update of mmhatnet.',
    )
    parser.add_argument('--remove', action='store_true', help='remove the operators again')
    args = parser.parse_args()
    try:
        print(operators.remove() if args.remove else operators.install())
    except operators.OperatorsError as error:
        raise SystemExit(str(error)) from None


if __name__ == '__main__':
    main()
