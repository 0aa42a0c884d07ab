"""The same as ``mmhatnet new-config``."""

from mmhatnet_cli import run_command

if __name__ == '__main__':
    run_command('new-config')
