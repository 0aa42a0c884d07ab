#!/bin/sh
# For `make env`: makes the virtual environment VENV, finishes a half-made one, renews an old one.
set -eu
fail() { echo "$*" >&2; exit 1; }
# An installation that was interrupted while it compiled modules looks complete to pip.
pip() { python -m pip --disable-pip-version-check install --no-compile -c requirements.txt "$@"; }
fingerprint() { { pwd; ls mmhatnet/.mim; "$base" -V; "$VENV/bin/python" -V; cat "$VENV/mmcv" \
    requirements.txt pyproject.toml setup.py tools/make_env.sh; } 2>&1 | sha256sum; }

[ -e "$VENV/stamp" ] || [ -z "$(ls -A "$VENV" 2>/dev/null)" ] ||
    fail "$VENV was not made by make env: remove it, or name another folder with VENV=."
for base in ${PYTHON:-"$VENV/bin/python" python3 python3.12 python3.11 python3.10}; do
    version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || :)
    case $version in 3.1[0-2]) break ;; esac
    missing="but $base is ${version:-missing}" version=
done
[ "$version" ] || fail "Python 3.10 to 3.12 is needed, $missing: name one with PYTHON=."
built=$(cat "$VENV/mmcv" 2>/dev/null || :) CUDA=${CUDA:-${built##* }}  # by default as it is
[ "$(fingerprint) ${built##* }" != "$(cat "$VENV/stamp" 2>/dev/null) $CUDA" ] || exit 0

if ! "$VENV/bin/python" -m pip -V 2>/dev/null | grep -q "(python $version)"; then
    header=$("$base" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    [ -e "$header" ] || fail "mmcv needs $header, which is missing: apt install python$version-dev"
    command -v ${CXX:-c++} >/dev/null || fail "mmcv needs a C++ compiler: apt install g++"
    built= && "$base" -m venv --clear --without-pip "$VENV" && touch "$VENV/stamp" &&
        "$VENV/bin/python" -m ensurepip --default-pip >/dev/null ||
        fail "$base cannot make $VENV, see above: apt install python$version-venv"
fi
export PATH="$VENV/bin:$PATH"  # where torch finds ninja
echo "==> Installing torch, then all else, in $VENV, for Python $version: up to 5 GB, 3 minutes"
pip setuptools wheel ninja packaging psutil torch torchvision
# nvcc may be a link, or a script, far from its headers: it knows where they are.
export CUDA_HOME="${CUDA_HOME:-$(nvcc --dryrun -E -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')}"
set -- $(python -c 'import sysconfig, torch, torch.utils.cpp_extension as build
print(torch.__version__, torch.version.cuda, torch.cuda.is_available(), build.CUDA_HOME)
print(*(f"-I{path}" for path in [*build.include_paths(), sysconfig.get_path("include")]))')
mmcv="$(grep ^onedl-mmcv== requirements.txt) for torch $1 with CUDA" torch_cuda=$2 gpu=$3 cuda_home=$4; shift 4
grep -v ^onedl-mmcv= requirements.txt | { pip -q opencv-python &&  # replaced by its headless one
    pip -q --no-build-isolation -r /dev/stdin -e .; } & others=$!  # beside the compilation
if [ "$built" != "$mmcv $CUDA" ]; then
    nvcc=$("$cuda_home/bin/nvcc" -V 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    cuda=0 why="nvcc is ${nvcc:-missing}, torch is for CUDA $torch_cuda"
    if [ "$CUDA" = 0 ]; then why='as chosen'
    elif [ "$gpu" = False ] && [ -z "${CUDA:+${TORCH_CUDA_ARCH_LIST:-}}" ]; then
        why='no GPU is visible (for an H100 elsewhere: CUDA=1 TORCH_CUDA_ARCH_LIST=9.0)'
    elif [ "${nvcc%.*}" = "${torch_cuda%.*}" ]; then cuda=1 why="nvcc $nvcc fits this torch"; fi
    [ "${CUDA:-$cuda}" = $cuda ] || fail "CUDA=$CUDA is not possible, CUDA=$cuda is: $why."
    echo "==> Compiling mmcv with CUDA=$cuda, about $((5 + 45 * cuda)) minutes on 2 cores: $why"
    # Most of the work is to parse PyTorch's header: it is precompiled, with the flags that torch
    # adds. Ours replace Python's own, whose -g doubles the time. CPATH is what nvcc may lack.
    flags='-O2 -g0 -DNDEBUG' header=$VENV/torch.hpp; rm -f "$header"*; echo '#include <torch/types.h>' >"$header"
    ${CXX:-c++} $flags -fPIC -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H -DTORCH_EXTENSION_NAME=_ext \
        "$@" -x c++-header "$header" -o "$header.gch"
    [ $cuda = 1 ] || export CUDA_VISIBLE_DEVICES=
    export FORCE_CUDA=$cuda CFLAGS="$flags -include $header"
    export CPATH="$(echo "$VENV"/lib/*/*/nvidia/*/include | tr ' ' :)"
    tail -F --pid=$$ "$header.log" 2>/dev/null | sed -un 's|^[^[]*\[\([0-9]*0/[0-9]*\)\] .*|    \1 files|p' &
    pip -q --log "$header.log" --force-reinstall --no-deps --no-build-isolation --no-cache-dir \
        --no-binary=:all: onedl-mmcv || fail "mmcv: $(grep -im1 error: "$header.log"), see $header.log"
    rm "$header"* && echo "$mmcv $cuda" >"$VENV/mmcv"
fi
wait $others && python -c 'import cv2, mmcv.ops' && fingerprint >"$VENV/stamp" && echo "==> $VENV is complete"
