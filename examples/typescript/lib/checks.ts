export interface Check {
  name: string;
  script: string;
}

/** Runs a check and tells how it ended, whichever way. */
export function check({ runtime }: Scope, { name, script }: Check): Promise<RunResult> {
  return runtime.run({
    name,
    image: "busybox:stable",
    command: { path: "sh", args: ["-c", script] },
    timeout: "1m",
    allowFailure: true,
    onOutput: (stream, data) => process.stdout.write(`${name} ${stream}: ${data}`),
  });
}
