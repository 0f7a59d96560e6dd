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
RUN python -m pip install --no-cache-dir ".${EXTRAS}" && rm -rf /src/*
RUN useradd --create-home querykey
USER querykey
WORKDIR /data
ENTRYPOINT ["querykey"]
CMD ["--help"]
