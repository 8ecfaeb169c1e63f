// Two tasks that share a volume, and a look at what is in it.
const pipeline = async () => {
  const greeting = await volumes.create({ name: "greeting" });
  await runtime.run({
    name: "write",
    image: "busybox:stable",
    command: { path: "sh", args: ["-c", 'echo "Hello from $WHO" > greeting/text'] },
    env: { WHO: "Orchestra" },
    mounts: { greeting },
  });
  const result = await runtime.run({
    name: "read",
    image: "busybox:stable",
    command: { path: "cat", args: ["greeting/text"] },
    inputs: { greeting },
  });
  assert.equal(result.stdout, "Hello from Orchestra\n");
  console.log(`${result.name} took ${result.duration.toFixed(1)} s`);
};

export { pipeline };
