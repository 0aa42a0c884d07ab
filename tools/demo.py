"""The same as ``mmhatnet demo``."""

from mmhatnet_cli import run_command

if __name__ == '__main__':
    run_command('demo')
