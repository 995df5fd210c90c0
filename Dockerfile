# Not built by the project's own checks (they run without a container engine); report what differs for you.
FROM debian:bookworm-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv prometheus \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY src ./src
# The package holds links to pages of the documentation.
COPY docs ./docs
RUN python3 -m venv /opt/meshscrape \
 && /opt/meshscrape/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.txt \
 && /opt/meshscrape/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 1337 --create-home meshscrape
COPY --from=build /opt/meshscrape /opt/meshscrape
COPY --from=build /usr/bin/prometheus /usr/bin/promtool /usr/local/bin/
ENV PATH=/opt/meshscrape/bin:$PATH
USER meshscrape
ENTRYPOINT ["meshscrape"]
CMD ["up"]
