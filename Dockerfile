# The edge, and the sample session: one image, `dormouse` is its entry point.
#
#   docker build -t dormouse:local .
#
# With a binary that exists (scripts/compose-test builds so, without any registry):
#
#   docker build -t dormouse:local --target prebuilt --build-arg BASE=IMAGE \
#     --build-arg BINARY=PATH-IN-CONTEXT CONTEXT
#
# It runs as user 65532. A Docker socket that only root may open needs more: see docker-compose.yml.

ARG BUILD_BASE=rust:1-bookworm
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS runtime
RUN mkdir -p /etc/dormouse/routes /etc/dormouse/certs /var/lib/dormouse \
    && chown 65532:65532 /var/lib/dormouse
WORKDIR /var/lib/dormouse
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/dormouse"]
CMD ["run", "--config", "/etc/dormouse/dormouse.toml"]

# Before the stage that compiles: the classic builder makes every stage up to its target.
FROM runtime AS prebuilt
ARG BINARY=dormouse
COPY ${BINARY} /usr/local/bin/dormouse

FROM ${BUILD_BASE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin dormouse

FROM runtime
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/dormouse /usr/local/bin/dormouse
