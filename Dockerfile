# querykey on a CPU:
#   docker build -t querykey .
#   docker run --rm -v "$PWD:/data" querykey adapt features --dim 64 --out run
# EXTRAS="" leaves the core, which applies adapters without PyTorch.
FROM python:3.11-slim
ARG EXTRAS="[train]"
ARG PIP_EXTRA_INDEX_URL=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
# hadolint ignore=DL3013
RUN python -m pip install --no-cache-dir ".${EXTRAS}" && rm -rf /src/*
RUN useradd --create-home --uid 1000 querykey
USER 1000
WORKDIR /data
ENTRYPOINT ["querykey"]
CMD ["--help"]
