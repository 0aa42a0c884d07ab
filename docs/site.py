"""Hooks of mkdocs.yml: add the pages outside docs/, and adapt links to the site."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ['README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'CHANGELOG.md']
PAGES += ['examples/kites/README.md', 'tests/data/README.md']
PAGES += [path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/*/README.md')]
OTHERS = [
    path.relative_to(ROOT).as_posix()
    for pattern in ('CITATION.cff', 'Dockerfile', 'LICENSE', 'NOTICE', 'examples/*.*')
    for path in ROOT.glob(pattern)
]
# The READMEs of configs/ link to them.
OTHERS += [path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/*/*.py')]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in (*PAGES, *OTHERS):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Adapts links: on the site, the pages of docs/ are beside the README instead of below it."""
    up = '../' * page.file.src_uri.count('/')
    if page.file.src_uri in PAGES:
        return markdown.replace(f']({up}docs/', f']({up}')
    return markdown.replace(f'](../{up}', f']({up}')
