# Torpor's image, as `make image` builds it without Docker: the same program of this workspace puts the files together in
# both, so that what is inside is decided in one place (tests/cluster/src/image). docs/image.md has the whole command;
#
#   docker build --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) --build-arg REVISION=$(git rev-parse HEAD) .
#
# is the least.

# Debian 12, whose C library the image takes along. The digest is the one of all platforms together.
FROM rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS build
ARG SOURCE_DATE_EPOCH=0
ARG REVISION=unknown
ENV TORPOR_CACHE=/cache TORPOR_REVISION=$REVISION SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH
WORKDIR /build
COPY . .
RUN cargo run --locked --package torpor-cluster --bin torpor-image -- rootfs /rootfs

# Nothing but these files: no shell, no package manager, nobody to become.
FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Torpor" \
      org.opencontainers.image.description="A Kubernetes operator that runs the trading stack of every tenant of a bot SaaS and puts idle tenants to sleep in stages." \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="https://github.com/torpor-dev/torpor" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.created="$CREATED"
COPY --from=build /rootfs/ /
WORKDIR /
USER 65532:65532
ENTRYPOINT ["/torpor"]
