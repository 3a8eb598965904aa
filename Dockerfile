# backstop's server in a container. Building asks crates.io for the crates of Cargo.lock and Debian for nothing.
#
#   docker build -t backstop .
#   docker run --rm -p 127.0.0.1:8080:8080 -e BACKSTOP_API_KEY=… -v backstop-models:/models backstop serve --host 0.0.0.0 NAME --pull
#
# Not tried: no image has been built of this file; its form was checked by hadolint. docs/deploy.md has more.
FROM rust:1.89-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin backstop

# The same Debian as above: its glibc, and nothing to install. TLS has its certificates from the stage that built.
FROM debian:bookworm-slim
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/backstop /usr/local/bin/backstop
RUN useradd --system --uid 10001 --no-create-home --home-dir /models backstop \
    && install -d -o backstop -g backstop /models
USER 10001
# The Hugging Face cache: models outlive the container.
ENV HF_HOME=/models
VOLUME /models
EXPOSE 8080
STOPSIGNAL SIGTERM
# A container that listens on every address needs a key: BACKSTOP_API_KEY.
ENTRYPOINT ["backstop"]
CMD ["serve", "--host", "0.0.0.0"]
