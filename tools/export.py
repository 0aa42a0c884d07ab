"""The same as ``mmhatnet export``."""

from mmhatnet_cli import run_command

if __name__ == '__main__':
    run_command('export')
