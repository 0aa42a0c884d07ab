#!/bin/sh
# For `make env`: creates the virtual environment VENV, or completes or updates its own earlier one.
# FAMILY=docs, for `make docs`, is the site generator alone, which reads this package as text.
set -eu
fail() { echo "$*" >&2; exit 1; }
python() { "$VENV/bin/python" "$@"; }
# pip would take an installation for complete that was interrupted while it compiled modules.
pip() { python -m pip --disable-pip-version-check install --no-compile "$@"; }
state() { echo "$FAMILY $({ pwd; [ -z "$mim" ] || ls $mim; "$base" -V; python -V; cat $inputs; } 2>&1 | cksum)"; }
# Prints the folder from which the package in VENV is linked.
linked() { python -I -c '
import json, importlib.metadata as metadata, urllib.parse as parse, urllib.request as request
url = json.loads(metadata.distribution("mmhatnet").read_text("direct_url.json"))["url"]
print(request.url2pathname(parse.urlparse(url).path))' 2>/dev/null; }

case $FAMILY in
    docs) size='100 MB, seconds' mim= inputs='docs/requirements.txt tools/make_env.sh' ;;
    onedl | openmmlab) size='6 GB, about 3 minutes' mim=mmhatnet/.mim inputs='requirements.txt
        pyproject.toml setup.py tools/make_env.sh mmhatnet/openmmlab/mmcv_ext.py' ;;
    *) fail "FAMILY is onedl or openmmlab, not $FAMILY." ;;
esac
[ -e "$VENV/stamp" ] || [ -z "$(ls -A "$VENV" 2>/dev/null)" ] ||
    fail "$VENV was not made by make env: remove it, or name another folder with VENV=."
for base in ${PYTHON:-"$VENV/bin/python" python3 python3.13 python3.12 python3.11 python3.10}; do
    version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || :)
    case $version in 3.1[0-3]) break ;; esac
    missing="but $base is ${version:-missing}" version=
done
[ "$version" ] || fail "Python 3.10 to 3.13 is needed, $missing: name one with PYTHON=."
stamp=$(cat "$VENV/stamp" 2>/dev/null || :)
[ "$stamp" != "$(state)" ] || exit 0

# An environment elsewhere that is linked to another checkout is left to that one.
here=$(pwd -P) other=$(linked || :)
if [ -d "$other" ] && [ "$(cd "$other" && pwd -P)" != "$here" ]; then
    case $(cd "$VENV" && pwd -P)/ in
        "$here"/*) ;;
        *) fail "$VENV belongs to the checkout $other: name another folder with VENV=." ;;
    esac
fi
case $stamp in openmmlab* | docs*) family=${stamp%% *} ;; *) family=onedl ;; esac
if [ $family != "$FAMILY" ] || ! python -m pip -V 2>/dev/null | grep -q "(python $version)"; then
    "$base" -m venv --clear --without-pip "$VENV" && echo "$FAMILY" >"$VENV/stamp" &&
        python -m ensurepip --default-pip >/dev/null ||
        fail "$base cannot make $VENV, see above: apt install python$version-venv"
fi
echo "==> Installing into $VENV, for Python $version: $size"
if [ "$FAMILY" = docs ]; then
    pip -q -r docs/requirements.txt
    state >"$VENV/stamp"
    exit
fi
if [ "$FAMILY" = openmmlab ]; then
    grep -vE '^(onedl|numpy|opencv)' requirements.txt | pip -r /dev/stdin -e '.[openmmlab]'
else
    # Packages without wheels are built while PyTorch, which is large, is downloaded. opencv-python
    # comes first, because its headless build has to replace it: that one needs no display libraries.
    python -m pip wheel -q --no-deps -w "$VENV/wheels" $(grep -o '^onedl[^ ]*' requirements.txt) &
    pip -c requirements.txt torch torchvision opencv-python
    wait $!
    pip --find-links "$VENV/wheels" -r requirements.txt -e .
fi
python -m mmhatnet.install_ops
python -c 'import cv2' && state >"$VENV/stamp" && echo "==> $VENV is complete"
