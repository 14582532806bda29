# SPDX-License-Identifier: Apache-2.0
# Two images: `cpu`, slim, and `gpu` on NVIDIA's TensorRT container. scripts/build.sh chooses; scripts/launch.sh mounts the models.
ARG CPU_BASE=debian:bookworm-slim
ARG TENSORRT=25.09

# ---- cpu
FROM ${CPU_BASE} AS cpu
ARG UID=1000
ARG GID=1000
ARG EXTRAS=cpu,onnxruntime
ARG PACKAGES=
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bash ca-certificates python3 python3-venv wget \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /workspace/demobert
COPY pyproject.toml README.md ./
COPY helpers helpers
# hadolint ignore=DL3013,SC2086
RUN pip install --no-cache-dir --editable ".[${EXTRAS}]" ${PACKAGES}
COPY . .
# The caller's ids, so that what is written to mounted directories is the caller's.
RUN (getent group "${GID}" || groupadd --gid "${GID}" demobert) \
    && useradd --no-log-init --create-home --uid "${UID}" --gid "${GID}" demobert \
    && mkdir -p engines models/fine-tuned results \
    && chown "${UID}:${GID}" . \
    && chown -R "${UID}:${GID}" engines models squad results
USER ${UID}:${GID}
CMD ["bash"]

# ---- infer_c, the compiled part, for the gpu image
FROM nvcr.io/nvidia/tensorrt:${TENSORRT}-py3 AS infer_c
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir "pybind11>=2.12"
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /workspace/demobert
COPY CMakeLists.txt ./
COPY infer_c infer_c
RUN cmake -S . -B build && cmake --build build -j "$(nproc)"

# ---- gpu
FROM nvcr.io/nvidia/tensorrt:${TENSORRT}-py3 AS gpu
ARG UID=1000
ARG GID=1000
ARG EXTRAS=cpu,tensorflow
ARG PACKAGES=
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv wget \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv --system-site-packages /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /workspace/demobert
COPY pyproject.toml README.md ./
COPY helpers helpers
# TensorRT is the container's own. Where its Python package is not installed, that of the same version is fetched.
# hadolint ignore=DL3013,SC2086
RUN pip install --no-cache-dir --editable ".[${EXTRAS}]" "cuda-python>=12.6" ${PACKAGES} \
    && (python -c "import tensorrt" || { version=$(dpkg-query --show --showformat '${Version}' 'libnvinfer1[0-9]') \
        && pip install --no-cache-dir "tensorrt==${version%%-*}"; })
COPY --from=infer_c /workspace/demobert/build/perf /workspace/demobert/build/infer_c*.so build/
COPY . .
# Ubuntu's own user 1000 makes room for the caller's id.
RUN (userdel --remove ubuntu 2>/dev/null || true) \
    && (getent group "${GID}" || groupadd --gid "${GID}" demobert) \
    && useradd --no-log-init --create-home --uid "${UID}" --gid "${GID}" demobert \
    && mkdir -p engines models/fine-tuned results \
    && chown "${UID}:${GID}" . \
    && chown -R "${UID}:${GID}" engines models squad results
USER ${UID}:${GID}
CMD ["bash"]
