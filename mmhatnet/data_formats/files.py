"""Finds and reads the files of a data folder, of which none is trusted."""

import json
import math
import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import yaml

from mmhatnet.errors import DataError, printable

OURS = 'mmhatnet_coco'  # the folder that is written
IMAGES = frozenset(('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm'))
SPLITS = dict(train='train', training='train', val='val', valid='val', validation='val')
SPLITS.update(test='test', testing='test')
DEPTH = 4
# In YAML a value may be in itself many times.
SHORT = reprlib.Repr()
SHORT.maxlevel = 2


def folders(root: Path, depth: int) -> list[Path]:
    """Returns a folder and those below it, without hidden ones and the one that is written."""
    paths = sorted(root.iterdir()) if depth else ()
    inner = [p for p in paths if p.name[0] not in '._' and p.name != OURS and p.is_dir()]
    return [root, *(below for path in inner for below in folders(path, depth - 1))]


def split_of(path: Path) -> str | None:
    """Returns the split that a path names, by its last word that names one."""
    words = re.findall('[a-z]+', path.as_posix().lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), None)


def files_with(root: Path, *suffixes: str, depth: int = DEPTH) -> list[Path]:
    """Returns the files below a folder that end so, in any case, without hidden ones."""
    seen, found = set(), []
    for folder in folders(root, depth):
        if (real := folder.resolve()) in seen:  # a link to itself
            continue
        seen.add(real)
        found += [p for p in sorted(folder.iterdir()) if p.suffix.lower() in suffixes]
    return [path for path in found if path.name[0] != '.' and path.is_file()]


def read_text(path: Path) -> str:
    """Reads a text in UTF-8, with or without a byte order mark.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise DataError(
            f'{path} is no text in UTF-8 (byte {error.start:,}): save it as UTF-8.'
        ) from error
    except OSError as error:
        raise DataError(f'{path} cannot be read ({error.strerror}).') from error


def read_json(path: Path) -> object:
    """Reads a JSON file; raises a DataError that names the line of a fault."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise DataError(f'{path} is nested too deep to be read: export it again.') from None
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f'{path} is not JSON ({error}): export it again.') from error


def read_yaml(path: Path) -> dict:
    """Reads a YAML file with texts alone, so that a class may be named "no" or "1".

    Raises:
        DataError: If it is none, with the line of the fault, or no mapping.
    """
    try:
        content = yaml.load(read_text(path), Loader=yaml.BaseLoader)  # it makes no objects
    except RecursionError:
        raise DataError(f'{path} is nested too deep to be read.') from None
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        line = f', line {mark.line + 1}' if mark else ''
        reason = ' '.join(str(getattr(error, 'problem', None) or error).split())
        raise DataError(f'{path}{line}: it is not YAML ({reason}): correct it.') from error
    if not isinstance(content, dict):
        raise DataError(f'{path} is no YAML of "key: value" lines, such as "names: [cat, dog]".')
    return content


def read_xml(path: Path) -> Element:
    """Reads an XML file without a document type, whose entities could grow without limit.

    Raises:
        DataError: If it is none, with the line of the fault.
    """
    parser, tree = expat.ParserCreate(), TreeBuilder()
    parser.StartElementHandler, parser.EndElementHandler = tree.start, tree.end
    parser.CharacterDataHandler = tree.data

    def refuse(*_: object) -> None:
        raise DataError(
            f'{path}, line {parser.CurrentLineNumber}: it has a DOCTYPE, which annotations do not '
            'need and which is not read: remove it.'
        )

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
        return tree.close()
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise DataError(
            f'{path}, line {error.lineno}: it is not XML ({reason}): export it again.'
        ) from error
    except (OSError, ValueError, LookupError) as error:  # such as an unknown encoding
        raise DataError(f'{path} cannot be read ({error}).') from error


def number(value: object) -> float:
    """Returns a finite number that may be written as a text; raises a ValueError for another."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    try:
        result = float(value)
    except OverflowError:
        raise ValueError from None
    if not math.isfinite(result):
        raise ValueError
    return result


def short(value: object) -> str:
    """Returns a value of a file for a message, without what is deep inside or far behind."""
    nested = isinstance(value, (list, dict))
    text = SHORT.repr(value) if nested else value if isinstance(value, str) else json.dumps(value)
    return printable(text if len(text) <= 80 else f'{text[:80]}...')


class Images:
    """The images of a folder, to find those that annotations name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = files_with(root, *IMAGES)
        self._named: dict[str, list[Path]] = {}
        for path in self.paths:
            for name in {path.name, path.stem}:
                self._named.setdefault(name, []).append(path)

    def find(self, name: str, *near: Path, split: str | None = None) -> Path | None:
        """Finds an image.

        Args:
            name (str): Its name, with or without folders, which may be those of another computer.
            *near (Path): Folders that the name may be relative to.
            split (str, optional): The split that it belongs to. Where only the last part of the
                name fits, an image of another split is not meant.

        Returns:
            Path | None: The image; None if there is none, or several are named so.
        """
        for path in self._places(name, near):
            # A name that is too long or has a null character is no path.
            try:
                if path.is_file():
                    return path
            except (OSError, ValueError):
                continue
        last = re.split(r'[\\/]', name)[-1]
        for key in (last, unquote(last)):
            found = [
                path
                for path in self._named.get(key, [])
                if not split or split_of(path.parent.relative_to(self.root)) in (None, split)
            ]
            beside = [path for path in found if path.parent in near]
            if len(beside or found) == 1:
                return (beside or found)[0]
        return None

    def _places(self, name: str, near: tuple[Path, ...]) -> Iterator[Path]:
        if not name:
            return
        for text in dict.fromkeys((name, name.replace('\\', '/'), unquote(name))):
            yield from (folder / text for folder in (*near, self.root))


def relative(path: Path, root: Path) -> str:
    """Returns a path relative to a folder, which need not be around it."""
    return Path(os.path.relpath(path, root)).as_posix()
