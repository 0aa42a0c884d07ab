"""The same as ``mmhatnet reproduce``."""

from mmhatnet_cli import run_command

if __name__ == '__main__':
    run_command('reproduce')
