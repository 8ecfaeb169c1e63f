// The example of the documentation of `image.build()`, word for word, with the volumes that it takes for granted.
const pipeline = async () => {
  const sourceVolume = await volumes.create({ name: "source" });
  const cacheVolume = await caches.restore({ key: "buildkit", devices: true });
  await runtime.run({
    name: "checkout",
    image: "busybox:stable",
    command: { path: "cp", args: ["/bin/busybox", "source/busybox"] },
    mounts: { source: sourceVolume },
  });
  await sourceVolume.writeFiles({
    Dockerfile: `
FROM scratch AS production
COPY busybox /bin/busybox
ARG GO_VERSION
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin && echo '#!/bin/sh' > /myapp && echo echo myapp, go $GO_VERSION, called with '$1' >> /myapp && chmod +x /myapp"]
FROM production AS unwanted
RUN ["/bin/busybox", "false"]
`,
  });

  const result = await image.build({
    context: "source", // input volume mount name
    dockerfile: "Dockerfile", // path relative to context (default: "Dockerfile")
    tag: "registry.example.com/myapp:latest",
    push: true,
    buildArgs: { GO_VERSION: "1.26" },
    target: "production", // optional Dockerfile stage
    platforms: ["linux/amd64"], // optional; default host arch
    inputs: { source: sourceVolume }, // VolumeResult mounts
    caches: { "/var/lib/buildkit": cacheVolume }, // optional layer cache mount
    registryAuth: {
      registry: "registry.example.com", // optional; inferred from tag
      username: "user",
      password: "secret:REGISTRY_PASSWORD", // resolved by the secrets manager
      insecure: false, // permit plain-HTTP push
    },
    timeout: "10m",
    onOutput: (stream, data) => process.stdout.write(data),
  });
  console.log(result.ref); // "registry.example.com/myapp:latest"
  console.log(result.digest); // "sha256:..."
  // Use the built image in the next task:
  await runtime.run({
    image: result.ref,
    command: { path: "/myapp", args: ["--version"] },
  });
};

export { pipeline };
