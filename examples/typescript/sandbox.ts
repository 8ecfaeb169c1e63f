// A container that stays, files in and out of a volume, and data in YAML.
interface Settings {
  words: string[];
  greeting: string;
}

const pipeline = async () => {
  const work = await volumes.create({ name: "work" });
  const settings: Settings = yaml.parse("greeting: hello\nwords: [one, two]\n");
  await work.writeFiles({
    "settings.yml": yaml.stringify(settings),
    "raw.bin": new Uint8Array([0, 1, 255]),
  });

  const sandbox = await runtime.startSandbox({
    image: "busybox:stable",
    mounts: { work },
    env: { GREETING: settings.greeting },
  });
  for (const word of settings.words) {
    const result = await sandbox.exec({
      command: { path: "sh", args: ["-c", 'echo "$GREETING $WORD" | tee -a work/log'] },
      env: { WORD: word },
      workDir: "/workspace",
    });
    assert.equal(result.stdout, `hello ${word}\n`);
  }
  await assert.rejects(sandbox.exec({ command: ["sh", "-c", "exit 9"] }), { code: 9 });
  await sandbox.close();

  const files = await work.readFiles(["log", "settings.yml"]);
  assert.equal(files["log"], "hello one\nhello two\n");
  assert.contains(files["settings.yml"] ?? "", "greeting: hello");
  const raw = await work.readFile("raw.bin", { encoding: "bytes" });
  assert.deepEqual([...raw], [0, 1, 255]);
};

export { pipeline };
