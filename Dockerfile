# An image of the three static programs and nothing else.

# Any Debian with rustc, cargo, gcc and libc6-dev will do, on any architecture.
ARG BUILDER=docker.io/library/rust:1.95-slim-bookworm

FROM ${BUILDER} AS dependencies
WORKDIR /src
# The target is named even though it is the builder's own, because procedural macros, which run
# during the build, cannot be static. Debug information is removed, but symbols stay: without them, a
# panic's backtrace has no names. Packed relocations make the programs smaller. (A linker that cannot
# pack relocations warns and continues; a C library before 2.36 could not unpack them.)
ENV CARGO_BUILD_TARGET=host-tuple \
    CARGO_PROFILE_IMAGE_STRIP=debuginfo \
    RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
COPY Cargo.toml Cargo.lock ./
COPY client/Cargo.toml client/
COPY compare/Cargo.toml compare/
COPY zmtp/Cargo.toml zmtp/
# With empty sources, so that this layer is built again only if the dependencies change.
RUN mkdir src client/src compare/src zmtp/src \
    && touch src/lib.rs client/src/lib.rs compare/src/lib.rs zmtp/src/lib.rs \
    && cargo build --locked --profile image --lib

FROM dependencies AS build
COPY build.rs .
COPY bin bin
COPY client client
COPY src src
COPY zmtp zmtp
ARG REVISION=unknown
# Touched, because the empty sources were compiled later, and cargo would take them for current.
RUN touch src/lib.rs client/src/lib.rs zmtp/src/lib.rs \
    && ZMQ_ECHO_REVISION="${REVISION}" cargo build --locked --profile image --bins \
    && mkdir -p /image/bin \
    && cd target/*/image \
    && cp zmq-echo-server zmq-echo-probe zmq-echo-load /image/bin/

FROM scratch
COPY --from=build /image/bin/ /
# A number, because there is no /etc/passwd, and because Kubernetes can only tell by a number that the
# user is not root.
USER 65532:65532
# All interfaces, because a container's network is its boundary.
ENV ZMQ_ECHO_BIND=tcp://*:5555 ZMQ_ECHO_HTTP=*:8080
EXPOSE 5555 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/zmq-echo-server"]
# Last, so that another commit does not change any layer.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="zmq-echo" \
      org.opencontainers.image.description="The reference ZeroMQ microservice in Rust: an echo server with probe, metrics and a graceful drain, ready for Kubernetes" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="MIT"
