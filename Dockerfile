# The command mmhatnet, without a compiler. docs/docker.md says how to build and run it.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# Libraries that OpenCV loads.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

# PyTorch for CPUs. With an empty index, PyPI's for CUDA, which brings its libraries.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements.txt /mmhatnet/
RUN pip install --no-cache-dir -c /mmhatnet/requirements.txt \
    ${TORCH_INDEX:+--index-url} ${TORCH_INDEX} torch torchvision

COPY . /mmhatnet
RUN pip install --no-cache-dir -c /mmhatnet/requirements.txt "/mmhatnet[onedl,export]"
RUN python -m mmhatnet.install_ops

# Any user can run it: --user gives what is written to the right owner.
WORKDIR /work
ENV HOME=/home/mmhatnet
RUN useradd --create-home mmhatnet && chmod 777 /home/mmhatnet /work
USER mmhatnet
ENTRYPOINT ["mmhatnet"]
CMD ["--help"]
