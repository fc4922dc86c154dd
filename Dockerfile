# diffopt on NVIDIA's TensorRT image, which has TensorRT's library and trtexec, as PyPI has not. In it:
#
#   docker build . --tag diffopt
#   docker run --rm --gpus all --volume "$PWD/outputs:/diffopt/outputs" --volume hub:/hub diffopt +recipe=quickstart
#
# Not built yet: NVIDIA's registry could not be reached where this was written. What was checked there is that pip resolves what
# the RUN line installs (`pip install --dry-run`), and that diffopt installs from a copy of these files and runs from there.
ARG IMAGE=nvcr.io/nvidia/tensorrt:25.10-py3
FROM ${IMAGE}

# The image may pin packages for all of pip; torch here is PyPI's, which brings its own CUDA libraries.
ENV PIP_CONSTRAINT="" PIP_NO_CACHE_DIR=1 HF_HOME=/hub PATH=/opt/diffopt/bin:$PATH
COPY . /src
RUN python3 -m venv --system-site-packages /opt/diffopt \
 && pip install torch==2.14.1 torchvision==0.29.1 \
 && pip install /src
WORKDIR /diffopt
ENTRYPOINT ["diffopt"]
CMD ["doctor"]
