// What a pipeline in TypeScript finds in its global scope. `orchestra init --ts` writes this file beside a pipeline.
//
// Durations are texts as `90s`, `10m` or `1h30m`; sizes are texts as `512MB`, in powers of 1024, or numbers of bytes.
// `secret:KEY` stands for a secret wherever it says so, and is resolved outside of the script.

/** A module's `pipeline`: `export { pipeline }`. */
type Pipeline = (context: PipelineContext) => void | Promise<void>;

type Duration = string;
type Size = string | number;

/** Files that tasks of a run share. Mount it, or read and write its files. */
declare class Volume {
  private constructor();
  readonly name: string;
  /** Contents of files by their paths, which are relative to the volume. At most 16 MiB each and 32 MiB together. */
  readFiles(paths: string | readonly string[]): Promise<Record<string, string>>;
  readFiles(paths: string | readonly string[], options: { encoding: "bytes" }): Promise<Record<string, Uint8Array>>;
  /** The content of one file. */
  readFile(path: string): Promise<string>;
  readFile(path: string, options: { encoding: "bytes" }): Promise<Uint8Array>;
  /** Writes files; directories are made where there are none. */
  writeFiles(files: Record<string, string | Uint8Array | ArrayBuffer>, options?: { mode?: number }): Promise<void>;
}
type VolumeResult = Volume;

/** Gets what a step writes, as it comes. A slow one slows the step. Secrets are redacted. */
type OutputHandler = (stream: "stdout" | "stderr", data: string) => void;

/** A program and its arguments; a list has the program first. No shell is involved. */
type Command = { path: string; args?: readonly string[]; dir?: string; user?: string } | readonly [string, ...string[]];

/** What a cache is called in the store, and how it is kept. */
interface CacheOptions {
  /** Its name within its scope; `{{ checksum "source/Cargo.lock" }}` stands for a file of an input. */
  key?: string;
  /** Beginnings of keys, of which the newest is taken if there is no cache of the key. */
  restoreKeys?: readonly string[];
  scope?: "job" | "task" | "pipeline";
  policy?: "pull-push" | "pull" | "push";
  sizeLimit?: Size;
  /** What of it is kept; all where not given. */
  paths?: readonly string[];
  /** Whether device files are kept; of builds they always are. A cache that is restored for a build has to say so. */
  devices?: boolean;
}

/** Directories that are kept, by their paths: a volume, a cache's key, or a cache's options. */
type Caches = Record<string, VolumeResult | string | CacheOptions>;

interface Limits {
  /** Processors: a quota. */
  cpu?: number | string;
  memory?: Size;
}

interface SandboxOptions {
  /** The step's name: that of its output and its container. */
  name?: string;
  image: string;
  /** A value may be `secret:KEY`. */
  env?: Record<string, string | number | boolean>;
  /** Volumes by their paths, relative to the working directory, `/workspace`, or absolute. */
  mounts?: Record<string, VolumeResult>;
  /** The same as `mounts`. */
  inputs?: Record<string, VolumeResult>;
  caches?: Caches;
  limits?: Limits;
  privileged?: boolean;
  network?: "default" | "none" | "host";
  /** How it is confined. A profile is `default`, `unconfined`, or one of the host's. */
  security?: { seccomp?: string; apparmor?: string; noNewPrivileges?: boolean };
  user?: string;
  /** Relative to `/workspace`, or absolute. */
  workDir?: string;
  /** As `linux/arm64`; the engine's own where not given. */
  platform?: string;
  /** For the image's registry; each may be `secret:KEY`. */
  registryAuth?: { username: string; password: string; insecure?: boolean };
  /** Secrets that stand in files: `{ "/run/token": "secret:TOKEN" }`. */
  secretFiles?: Record<string, string>;
  /** What it runs; it waits where not given. */
  command?: Command;
}

interface RunOptions extends SandboxOptions {
  command: Command;
  /** `hidden` keeps variables that are secrets from the engine. */
  secretEnv?: "hidden" | "engine";
  /** Of each attempt. */
  timeout?: Duration;
  /** How often it is tried until it succeeds. */
  attempts?: number;
  /** Resolves whatever the exit code is. */
  allowFailure?: boolean;
  onOutput?: OutputHandler;
}

interface ExecResult {
  /** The step's name. */
  readonly name: string;
  readonly code: number;
  /** As far as it was kept: 1 MiB from the start and 1 MiB from the end. */
  readonly stdout: string;
  readonly stderr: string;
}

interface RunResult extends ExecResult {
  /** Seconds. */
  readonly duration: number;
}

interface ExecOptions {
  command: Command;
  env?: Record<string, string | number | boolean>;
  workDir?: string;
  user?: string;
  timeout?: Duration;
  allowFailure?: boolean;
  onOutput?: OutputHandler;
}

/** A container that waits for processes. */
declare class Sandbox {
  private constructor();
  readonly name: string;
  /** Runs a process in it. */
  exec(options: ExecOptions): Promise<ExecResult>;
  /** Ends and removes it. One that is left open is closed at the run's end. */
  close(): Promise<void>;
}

interface Runtime {
  /** Runs a task to its end. Rejects with a `TaskError` if it does not succeed. */
  run(options: RunOptions): Promise<RunResult>;
  startSandbox(options: SandboxOptions): Promise<Sandbox>;
}

interface RegistryAuth {
  /** Host and port; those of the tag where not given. */
  registry?: string;
  /** May be `secret:KEY`. */
  username?: string;
  /** May be `secret:KEY`. */
  password?: string;
  /** Permits plain HTTP. Never for a registry that matters. */
  insecure?: boolean;
  /** Certificates of the authority that its certificate is from, as PEM. */
  ca?: string;
  /** A client's certificate, as PEM, and its key, which may be `secret:KEY`. */
  clientCert?: string;
  clientKey?: string;
}

/** An archive or a folder that a build makes. */
interface BuildOutput {
  volume: VolumeResult;
  type: "oci" | "oci-layout" | "docker" | "local" | "rootfs";
}

/** What BuildKit fetches itself: a git repository, an archive or a Dockerfile alone. */
type ContextUrl = `https://${string}` | `http://${string}` | `git://${string}` | `ssh://${string}` | `git@${string}`;

type BuildOptions = BuildSettings &
  (
    | {
        /** The directory that `COPY` copies from: an input, or a directory in one. */
        context: string;
        /** Volumes by their paths. */
        inputs: Record<string, VolumeResult>;
      }
    | { context: ContextUrl; inputs?: Record<string, VolumeResult> }
  );

interface BuildSettings {
  /** The step's name; `build-` and the image's where not given. */
  name?: string;
  /** Relative to the context, or to the working directory; `Dockerfile` where not given. */
  dockerfile?: string;
  tag: string;
  /** Into the tag's registry; if not, the image goes into the engine. */
  push?: boolean;
  /** Whether the image goes into the engine; where not given, if it is not pushed. */
  load?: boolean;
  buildArgs?: Record<string, string | number | boolean>;
  /** A file of lines `NAME=VALUE` in an input. */
  buildArgsFile?: string;
  /** For `RUN --mount=type=secret`, by id: `{ npmrc: "secret:NPMRC" }`, or of an input: `{ token: { file: "source/token" } }`. */
  secrets?: Record<string, string | { file: string }>;
  /** Private keys for `RUN --mount=type=ssh`, by id: `{ default: "secret:DEPLOY_KEY" }`. */
  ssh?: Record<string, string>;
  target?: string;
  /** Further stages, each with what it makes, by the paths of these outputs. */
  additionalTargets?: Record<string, BuildOutput & { target: string }>;
  platforms?: readonly string[];
  outputs?: Record<string, BuildOutput>;
  caches?: Caches;
  registryAuth?: RegistryAuth | readonly RegistryAuth[];
  timeout?: Duration;
  attempts?: number;
  /** The BuildKit image. */
  image?: string;
  /** BuildKit's environment. */
  env?: Record<string, string>;
  /** That of the build's container. */
  network?: "default" | "none" | "host";
  /** That of `RUN` steps. */
  runNetwork?: "default" | "none" | "host";
  rootless?: boolean;
  /** `shared`: the run's builds use one daemon. */
  builder?: "own" | "shared";
  /** Further names of the image. */
  tags?: readonly string[];
  labels?: Record<string, string>;
  /** A file of lines `NAME=VALUE` in an input. */
  labelsFile?: string;
  annotations?: Record<string, string>;
  provenance?: "min" | "max";
  /** A list of what is in the image: `true`, or the image of a scanner. */
  sbom?: boolean | string;
  dockerfileInline?: string;
  buildContexts?: Record<string, string>;
  /** Base images by the build arguments that name them: OCI archives or layouts in inputs. */
  imageArgs?: Record<string, string>;
  frontend?: string;
  extraHosts?: readonly string[];
  ulimits?: readonly string[];
  shmSize?: Size;
  cacheFrom?: readonly string[];
  cacheTo?: readonly string[];
  /** What opens the bucket of `cacheFrom` and `cacheTo`; each may be `secret:KEY`. */
  cacheCredentials?: { accessKeyId: string; secretAccessKey: string };
  /** Most that BuildKit keeps in `/var/lib/buildkit`. */
  cacheLimit?: Size;
  mirrors?: Record<string, readonly string[]>;
  buildkitdConfig?: string;
  noCache?: boolean;
  noCacheFilter?: readonly string[];
  /** Seconds since 1970. */
  sourceDateEpoch?: number;
  onOutput?: OutputHandler;
}

interface BuildResult extends RunResult {
  /** The tag, as it was given. */
  readonly ref: string;
  /** All of its names, the tag first. */
  readonly refs: readonly string[];
  /** `sha256:…` */
  readonly digest: string;
  /** The digest of the image's config; `null` of several platforms. */
  readonly configDigest: string | null;
  /** The manifest for each platform; empty where the builder did not tell. */
  readonly platforms: readonly { readonly platform: string | null; readonly digest: string; readonly size: number }[];
  /** The additional targets, in their order. */
  readonly targets: readonly { readonly target: string; readonly digest: string | null }[];
  /** Bytes of the image as it is transferred. */
  readonly size: number | null;
  /** How many steps of the build were run, and how many were in the builder's cache. */
  readonly steps: { readonly run: number; readonly cached: number };
}

interface ImageApi {
  /** Builds a container image with BuildKit. Rejects with a `TaskError` that has the build's logs. */
  build(options: BuildOptions): Promise<BuildResult>;
}

interface VolumesApi {
  create(options?: { name?: string }): Promise<VolumeResult>;
}

interface CachesApi {
  /** A volume with what the store has of a cache. It is persisted at the run's end if all that used it succeeded. */
  restore(options: CacheOptions & { key: string; inputs?: Record<string, VolumeResult> }): Promise<VolumeResult>;
  /** Persists it now, or at the end of a run that has a `--run-id`. The volume can't be used any more. */
  persist(cache: VolumeResult): Promise<void>;
}

/** What runs within a job or a stage: the names of its steps begin with its own. */
interface Scope {
  readonly name: string;
  readonly runtime: Runtime;
  readonly image: ImageApi;
  readonly volumes: VolumesApi;
  readonly caches: CachesApi;
  stage<T>(name: string, body: (scope: Scope) => T | Promise<T>): Promise<T>;
}

interface PipelineApi {
  /** With `--job NAME` all other jobs are left out, and resolve to nothing. */
  job<T>(name: string, body: (scope: Scope) => T | Promise<T>): Promise<T | undefined>;
  stage<T>(name: string, body: (scope: Scope) => T | Promise<T>): Promise<T>;
}

interface PipelineContext {
  readonly runId: string;
  readonly file: string;
  readonly job: string;
  readonly driver: string;
  readonly engineVersion: string;
  readonly platform: string;
}

/** What a task, a build or a request did not succeed with. */
declare class TaskError extends Error {
  private constructor();
  /** The exit code, where there is one. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly step: string | null;
  /** `failed`: what it runs has to change. `errored`: the engine or a registry was in trouble. */
  readonly status: "failed" | "errored" | "aborted";
  readonly hint: string | null;
}

declare class AssertionError extends Error {}
type Expected = RegExp | string | (new (...args: never[]) => unknown) | Record<string, unknown>;
interface Assert {
  (condition: unknown, message?: string | Error): asserts condition;
  AssertionError: typeof AssertionError;
  ok(condition: unknown, message?: string | Error): asserts condition;
  truthy(condition: unknown, message?: string | Error): asserts condition;
  falsy(condition: unknown, message?: string | Error): void;
  equal<T>(actual: T, expected: T, message?: string | Error): void;
  notEqual<T>(actual: T, other: T, message?: string | Error): void;
  deepEqual<T>(actual: T, expected: T, message?: string | Error): void;
  notDeepEqual<T>(actual: T, other: T, message?: string | Error): void;
  match(text: string, pattern: RegExp, message?: string | Error): void;
  doesNotMatch(text: string, pattern: RegExp, message?: string | Error): void;
  contains<T>(all: string | readonly T[] | ReadonlySet<T> | ReadonlyMap<T, unknown>, part: T | string, message?: string | Error): void;
  notContains<T>(all: string | readonly T[] | ReadonlySet<T> | ReadonlyMap<T, unknown>, part: T | string, message?: string | Error): void;
  containsString(all: string, part: string, message?: string | Error): void;
  containsElement<T>(all: readonly T[], part: T, message?: string | Error): void;
  throws(action: () => unknown, expected?: Expected, message?: string | Error): void;
  rejects(promise: Promise<unknown> | (() => Promise<unknown>), expected?: Expected, message?: string | Error): Promise<void>;
  fail(message?: string | Error): never;
}

interface FetchOptions {
  method?: string;
  headers?: Record<string, string>;
  body?: string | Uint8Array | ArrayBuffer | null;
  /** No longer than the configured one. */
  timeout?: Duration;
}
interface FetchResponse {
  readonly status: number;
  readonly ok: boolean;
  readonly url: string;
  readonly headers: {
    get(name: string): string | null;
    has(name: string): boolean;
    entries(): IterableIterator<[string, string]>;
    [Symbol.iterator](): IterableIterator<[string, string]>;
  };
  text(): Promise<string>;
  json(): Promise<any>;
  bytes(): Promise<Uint8Array>;
}

interface Console {
  log(...values: unknown[]): void;
  info(...values: unknown[]): void;
  debug(...values: unknown[]): void;
  warn(...values: unknown[]): void;
  error(...values: unknown[]): void;
  trace(...values: unknown[]): void;
  dir(value: unknown): void;
  table(value: unknown): void;
  assert(condition: unknown, ...values: unknown[]): void;
  count(label?: string): void;
  group(...values: unknown[]): void;
  groupEnd(): void;
  time(label?: string): void;
  timeEnd(label?: string): void;
}

declare const runtime: Runtime;
declare const image: ImageApi;
declare const volumes: VolumesApi;
declare const caches: CachesApi;
/** Where a file's own `pipeline` hides it: `export { main as pipeline }`, or `pipeline.job` of that function. */
declare const pipeline: PipelineApi;
declare const pipelineContext: PipelineContext;
declare const assert: Assert;
declare const yaml: {
  parse(text: string): any;
  stringify(value: unknown): string;
};
declare const console: Console;
declare const process: {
  readonly stdout: { write(data: string): boolean };
  readonly stderr: { write(data: string): boolean };
  readonly env: Readonly<Record<string, never>>;
};
declare function setTimeout<A extends unknown[]>(action: (...args: A) => void, delay?: number, ...args: A): number;
declare function clearTimeout(id: number | undefined): void;
/** Reaches the hosts under `fetch_allow` in `[script]` of orchestra.toml alone. */
declare function fetch(url: string, options?: FetchOptions): Promise<FetchResponse>;
