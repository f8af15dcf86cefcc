# The three binaries, static, and nothing else.

# Any Debian with rustc, cargo, gcc and libc6-dev will do, on any architecture.
ARG BUILDER=docker.io/library/rust:1.95-slim-bookworm

FROM ${BUILDER} AS dependencies
WORKDIR /src
# The target is named, be it the builder's own: what runs while it builds, the
# procedural macros, cannot be static. Without symbols, the names in a panic's
# backtrace, and with relocations packed, all of it takes a sixth less. (A linker
# that cannot pack them says so and goes on; a C library before 2.36 could not
# unpack them.)
ENV CARGO_BUILD_TARGET=host-tuple \
    CARGO_PROFILE_RELEASE_STRIP=symbols \
    RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
COPY Cargo.toml Cargo.lock ./
COPY client/Cargo.toml client/
COPY compare/Cargo.toml compare/
COPY zmtp/Cargo.toml zmtp/
# With empty sources, so that this layer is built again where the dependencies
# change and only there.
RUN mkdir src client/src compare/src zmtp/src \
    && touch src/lib.rs client/src/lib.rs compare/src/lib.rs zmtp/src/lib.rs \
    && cargo build --locked --release --lib

FROM dependencies AS build
COPY build.rs .
COPY bin bin
COPY client client
COPY src src
COPY zmtp zmtp
ARG REVISION=unknown
# Touched, as what the empty sources compiled to is newer, and would be taken for them.
RUN touch src/lib.rs client/src/lib.rs zmtp/src/lib.rs \
    && ZMQ_ECHO_REVISION="${REVISION}" cargo build --locked --release --bins \
    && mkdir -p /image/bin \
    && cd target/*/release \
    && cp zmq-echo-server zmq-echo-probe zmq-echo-load /image/bin/

FROM scratch
COPY --from=build /image/bin/ /
# No name: there is no /etc/passwd, and Kubernetes tells only by a number that it
# is not root.
USER 65532:65532
# All interfaces, as in a container the network is the boundary.
ENV ZMQ_ECHO_BIND=tcp://*:5555 ZMQ_ECHO_HTTP=*:8080
EXPOSE 5555 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/zmq-echo-server"]
# Last, so that another commit makes no other layer.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="zmq-echo" \
      org.opencontainers.image.description="The reference ZeroMQ microservice in Rust: an echo server with probe, metrics and a graceful drain, ready for Kubernetes" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="MIT"
