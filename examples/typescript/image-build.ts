// From a Dockerfile to a container that runs what was built, as `image-build.yml` does it.
// `cargo xtask demo` provides the engine and the registry.
const pipeline = async () => {
  const source = await volumes.create({ name: "source" });
  // The image is made of nothing but this task's own static busybox: no base image is fetched.
  await runtime.run({
    name: "write-context",
    image: "busybox:stable-musl",
    command: { path: "cp", args: ["/bin/busybox", "source/busybox"] },
    mounts: { source },
  });
  await source.writeFiles({
    Dockerfile: `
FROM scratch
COPY busybox /bin/busybox
ARG GREETING
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin && echo \\"$GREETING from an image that Orchestra built\\" > /greeting"]
ENTRYPOINT ["/bin/cat"]
CMD ["/greeting"]
`,
  });
  const result = await image.build({
    name: "build-demo",
    context: "source",
    tag: "127.0.0.1:5055/orchestra/demo-ts:latest",
    push: true,
    buildArgs: { GREETING: "Hello" },
    inputs: { source },
    // The registry listens on the engine host's loopback, which a container shares only with the host's network.
    network: "host",
    registryAuth: { insecure: true },
    timeout: "10m",
    onOutput: (stream, data) => {
      if (stream === "stderr" && data.includes("ERROR")) process.stderr.write(data);
    },
  });
  console.log("ref:", result.ref);
  console.log("digest:", result.digest);
  const run = await runtime.run({
    name: "run-demo",
    image: result.ref,
    command: { path: "cat", args: ["/greeting"] },
    timeout: "2m",
  });
  assert.equal(run.stdout, "Hello from an image that Orchestra built\n");
};

export { pipeline };
