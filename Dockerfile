# docker build -t ginseng-eqx:0.1.0 .
# docker run --rm --read-only --tmpfs /tmp -u $(id -u):$(id -g) -v $PWD:/data ginseng-eqx:0.1.0 annotate model.h5 cells.h5ad -o out.h5ad
FROM python:3.12-slim AS build
COPY pyproject.toml README.md LICENSE /source/
COPY constraints/py3.12.txt /source/constraints.txt
COPY ginseng /source/ginseng
RUN python -m venv /opt/ginseng \
    && /opt/ginseng/bin/pip install --no-cache-dir --constraint /source/constraints.txt "/source[cluster,parquet,plot]"

FROM python:3.12-slim
# Nextflow measures tasks with ps.
RUN apt-get update && apt-get install --yes --no-install-recommends procps && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/ginseng /opt/ginseng
ENV PATH=/opt/ginseng/bin:/usr/local/bin:/usr/bin:/bin
# The user may have no home, or one that is read-only.
ENV XDG_CACHE_HOME=/tmp/cache
ENV MPLCONFIGDIR=/tmp/matplotlib
ENV NUMBA_CACHE_DIR=/tmp/numba
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["ginseng"]
