# The source agent, in a container beside the live repository.
#
#     docker build -f docker/source.Dockerfile -t assay-source .
#
# compiles it, which takes minutes. `--target prebuilt` takes the program from docker/.rig/binaries instead. Run it as the user who
# owns the repository's files, with that folder mounted read-only, without any capability (docker/README.md).
ARG DEBIAN=debian:bookworm-slim
ARG RUST=rust:1-bookworm

FROM ${DEBIAN} AS runtime
# tini, because what a mark command leaves running becomes a child of process 1.
RUN apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 7400 assay \
    && useradd --uid 7400 --gid assay --no-create-home --home-dir /var/lib/assay --shell /usr/sbin/nologin assay \
    && install -d -m 0755 /etc/assay \
    && install -d -o assay -g assay -m 0750 /var/lib/assay
USER assay
WORKDIR /var/lib/assay
EXPOSE 7401
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["assay-source", "health"]
ENTRYPOINT ["/usr/bin/tini", "--", "assay-source"]
CMD ["serve"]

FROM runtime AS prebuilt
COPY docker/.rig/binaries/assay-source /usr/bin/

# begin: compile (the same lines in every Dockerfile here, so that the programs are compiled once)
FROM ${RUST} AS compile
WORKDIR /src
COPY . .
RUN if [ -e docker/build-extra/cargo.toml ]; then cp docker/build-extra/cargo.toml "${CARGO_HOME:-/root/.cargo}/config.toml"; fi \
    && if [ -e docker/build-extra/ca.crt ]; then export CARGO_HTTP_CAINFO=/src/docker/build-extra/ca.crt; fi \
    && cargo build --release --locked --bin assay-source --bin assay-target --bin accurev-standin \
    && mkdir /out \
    && for name in assay-source assay-target accurev-standin; do strip -o "/out/$name" "target/release/$name"; done \
    && rm -rf target
# end: compile

FROM runtime AS compiled
COPY --from=compile /out/assay-source /usr/bin/
