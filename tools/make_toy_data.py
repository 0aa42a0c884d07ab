"""The same as ``mmhatnet make-toy-data``."""

from mmhatnet_cli import run_command

if __name__ == '__main__':
    run_command('make-toy-data')
