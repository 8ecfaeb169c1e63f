// A pipeline: run it with `orchestra run pipeline.ts`. All that it may use is in `orchestra.d.ts`.
const pipeline = async () => {
  const source = await volumes.create({ name: "source" });
  await source.writeFiles({ "greeting.txt": "Hello from a pipeline\n" });

  const result = await runtime.run({
    name: "read",
    image: "busybox:stable",
    command: { path: "cat", args: ["source/greeting.txt"] },
    mounts: { source },
    timeout: "5m",
  });
  assert.equal(result.stdout, "Hello from a pipeline\n");
  console.log("done");
};

export { pipeline };
