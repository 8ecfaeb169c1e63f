// What a compiler has to find: an expectation without its error is an error too.
const pipeline = async () => {
  // @ts-expect-error: `command` is missing
  await runtime.run({ image: "busybox" });
  // @ts-expect-error: there is no such option
  await runtime.run({ image: "busybox", command: ["true"], tiemout: "1s" });
  // @ts-expect-error: a mount is a volume
  await runtime.run({ image: "busybox", command: ["true"], mounts: { source: "source" } });
  // @ts-expect-error: a build has inputs
  await image.build({ context: "source", tag: "a" });
  await image.build({ context: "https://example.com/app.git#main", tag: "a" });
  const source = await volumes.create();
  const output = { volume: source, type: "local" } as const;
  await image.build({
    context: "source",
    tag: "a",
    inputs: { source },
    outputs: { made: output },
    additionalTargets: { tested: { ...output, target: "test" } },
    registryAuth: { ca: "-----BEGIN CERTIFICATE-----" },
    cacheCredentials: { accessKeyId: "secret:ID", secretAccessKey: "secret:KEY" },
    sbom: true,
    builder: "shared",
  });
  // @ts-expect-error: an additional target has a stage
  await image.build({ context: "source", tag: "a", inputs: { source }, additionalTargets: { tested: output } });
  // @ts-expect-error: there is no such policy
  await caches.restore({ key: "a", policy: "never" });
  // @ts-expect-error: content is text or bytes
  await source.writeFiles({ a: 1 });
  const result = await runtime.run({ image: "busybox", command: ["true"], inputs: { source } });
  // @ts-expect-error: a result is not changed
  result.code = 1;
  // @ts-expect-error: there is no file system
  await import("node:fs");
  // @ts-expect-error: there is no such global
  document.title;
};

export { pipeline };
