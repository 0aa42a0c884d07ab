"""The same as ``mmhatnet check-data``."""

from mmhatnet_cli import run_command

if __name__ == '__main__':
    run_command('check-data')
