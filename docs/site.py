"""For mkdocs.yml: pages of the repository outside docs/, with links as in the repository."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'examples/kites/README.md')
OTHERS = ('CITATION.cff', 'LICENSE')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in (*PAGES, *OTHERS):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """The pages of docs/ lie beside the README on the site, and below it in the repository.

    Those in a folder of docs/ lie as deep below it.
    """
    if page.file.src_uri in PAGES:
        return markdown.replace('](docs/', '](')
    up = '../' * page.file.src_uri.count('/')
    return markdown.replace(f']({up}../', f']({up}')
