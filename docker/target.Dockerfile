# The target agent, in a container on the backup host.
#
#     docker build -f docker/target.Dockerfile -t assay-target .
#
# compiles it, which takes minutes. `--target prebuilt` takes the program from docker/.rig/binaries instead. The engine's own check runs
# in this image, so its programs have to be here: `--build-arg PACKAGES="postgresql-15 subversion"`.
#
# It runs as root, because an exact copy has the owners of the original and a check runs in namespaces of its own. Which
# capabilities that takes, and that nothing else is needed, stands in docker/README.md.
ARG DEBIAN=debian:bookworm-slim
ARG RUST=rust:1-bookworm

FROM ${DEBIAN} AS runtime
ARG PACKAGES=
# No cluster: a server runs only while a copy is checked.
RUN apt-get update -q \
    && mkdir -p /etc/postgresql-common && echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -o Dpkg::Options::=--force-confold \
        tini bubblewrap ${PACKAGES} \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -m 0755 /etc/assay /var/lib/assay
WORKDIR /var/lib/assay
EXPOSE 7402
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["assay-target", "health"]
ENTRYPOINT ["/usr/bin/tini", "--", "assay-target"]
CMD ["serve"]

FROM runtime AS prebuilt
COPY docker/.rig/binaries/assay-target /usr/bin/

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
COPY --from=compile /out/assay-target /usr/bin/
