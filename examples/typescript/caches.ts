// A cache that is restored by hand and one that a task has; `orchestra.toml` says where they are kept.
const pipeline = async () => {
  const source = await volumes.create({ name: "source" });
  await source.writeFiles({ "deps.lock": "left-pad 1.3.0\n" });
  const deps = await caches.restore({
    key: 'deps-{{ checksum "source/deps.lock" }}',
    restoreKeys: ["deps-"],
    inputs: { source },
  });
  await runtime.run({
    name: "install",
    image: "busybox:stable",
    command: { path: "sh", args: ["-c", "if [ -e deps/left-pad ]; then echo cached; else echo fetched; echo 1.3.0 > deps/left-pad; fi"] },
    mounts: { deps },
    caches: { "/root/.cache": { key: "tools", scope: "pipeline" } },
  });
  // From here on other runs can have it, whatever becomes of this one.
  await caches.persist(deps);
};

export { pipeline };
