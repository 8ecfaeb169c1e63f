// Steps at the same time, in jobs and stages of their own; and what to do about one that fails.
import { check, type Check } from "./lib/checks";

const CHECKS: Check[] = [
  { name: "one", script: "sleep 1; echo first" },
  { name: "two", script: "sleep 1; echo second" },
  { name: "three", script: "echo third; exit 3" },
];

async function main(): Promise<void> {
  const began = Date.now();
  const codes = await pipeline.job("checks", async (job) => {
    const results = await Promise.all(CHECKS.map((one) => check(job, one)));
    return results.map((result) => result.code);
  });
  assert.deepEqual(codes, [0, 0, 3]);
  console.log(`run ${pipelineContext.runId}: ${CHECKS.length} checks in ${Date.now() - began} ms`);
  // A stage stands within a job, or by itself.
  await pipeline.stage("notes", ({ runtime }) =>
    runtime.run({ name: "say", image: "busybox:stable", command: ["echo", pipelineContext.driver] }),
  );

  await pipeline.job("clean-up", async ({ runtime, stage }) => {
    try {
      await stage("risky", ({ runtime }) =>
        runtime.run({ image: "busybox:stable", command: ["sh", "-c", "echo no luck >&2; exit 1"] }),
      );
    } catch (error) {
      assert(error instanceof TaskError);
      assert.deepEqual([error.step, error.code, error.stderr], ["clean-up.risky.sh", 1, "no luck\n"]);
    } finally {
      await runtime.run({ name: "always", image: "busybox:stable", command: ["echo", "always"] });
    }
  });
}

export { main as pipeline };
