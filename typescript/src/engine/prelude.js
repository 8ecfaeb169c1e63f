// What a pipeline's script finds in its global scope. `native` is the bridge to the program that runs it, and is in no
// scope of the script's. Its frames are left out of stack traces.
(function (native) {
  "use strict";
  const { call, say, map, timer, untimer, parseYaml, showYaml } = native;

  // Stack traces: in the user's lines, in the form that V8 has made known.
  const frames = (sites) => {
    const lines = [];
    for (const site of sites) {
      const file = site.getFileName();
      if (file === "orchestra:prelude" || file === null || file === undefined || site.isNative()) continue;
      const place = map(file, site.getLineNumber() ?? 0, site.getColumnNumber() ?? 0);
      const name = site.getFunctionName();
      lines.push(name && name !== "<anonymous>" && name !== "<eval>" ? `    at ${name} (${place})` : `    at ${place}`);
    }
    return lines.join("\n");
  };
  const heading = (error) => {
    try {
      const name = String(error?.name ?? "Error");
      const message = String(error?.message ?? "");
      return message ? `${name}: ${message}` : name;
    } catch {
      return "Error";
    }
  };
  const withFrames = (heading, frames) => (frames ? `${heading}\n${frames}` : heading);
  Error.prepareStackTrace = (error, sites) => withFrames(heading(error), frames(sites));
  Error.stackTraceLimit = 20;
  const here = () => {
    const stack = new Error("").stack;
    const at = stack.indexOf("\n");
    return at < 0 ? "" : stack.slice(at + 1);
  };

  class TaskError extends Error {
    constructor(failure, frames) {
      super(failure.message);
      this.name = "TaskError";
      this.code = failure.code ?? null;
      this.stdout = failure.stdout ?? "";
      this.stderr = failure.stderr ?? "";
      this.step = failure.step ?? null;
      this.status = failure.status;
      this.hint = failure.hint ?? null;
      Object.defineProperty(this, "stack", { value: withFrames(heading(this), frames), writable: true, configurable: true });
    }
  }
  class AssertionError extends Error {
    constructor(message) {
      super(message);
      this.name = "AssertionError";
    }
  }

  const failure = (told, frames) => {
    if (told.kind === "input") {
      const error = new TypeError(told.message);
      Object.defineProperty(error, "stack", { value: withFrames(heading(error), frames), writable: true, configurable: true });
      error.hint = told.hint ?? null;
      return error;
    }
    return new TaskError(told, frames);
  };
  const ask = (op, args, onOutput) => {
    const site = here();
    if (onOutput !== undefined && typeof onOutput !== "function") throw new TypeError("`onOutput` is a function");
    let text;
    try {
      text = JSON.stringify(args);
    } catch (error) {
      throw new TypeError(`the options can't be passed on: ${error.message}`);
    }
    const answered = (text) => JSON.parse(text);
    const failed = (text) => {
      throw failure(JSON.parse(text), site);
    };
    return call(op, text, onOutput).then(answered, failed);
  };
  const object = (value, what) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw new TypeError(`${what} takes an object with options`);
    }
    return value;
  };
  /** Options without the functions among them. */
  const plain = (options) => {
    const { onOutput, ...rest } = options;
    return rest;
  };

  // Bytes.
  const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const toBase64 = (bytes) => {
    let out = "";
    for (let at = 0; at < bytes.length; at += 3) {
      const three = (bytes[at] << 16) | ((bytes[at + 1] ?? 0) << 8) | (bytes[at + 2] ?? 0);
      out += digits[three >> 18] + digits[(three >> 12) & 63];
      out += at + 1 < bytes.length ? digits[(three >> 6) & 63] : "=";
      out += at + 2 < bytes.length ? digits[three & 63] : "=";
    }
    return out;
  };
  const fromBase64 = (text) => {
    const clean = text.replace(/=+$/, "");
    const bytes = new Uint8Array(Math.floor((clean.length * 3) / 4));
    let bits = 0;
    let held = 0;
    let at = 0;
    for (const digit of clean) {
      held = ((held << 6) | digits.indexOf(digit)) & 0xffffff;
      bits += 6;
      if (bits >= 8) {
        bits -= 8;
        bytes[at++] = (held >> bits) & 255;
      }
    }
    return bytes;
  };

  // Values as text.
  const inspect = (value, depth = 0, seen = []) => {
    switch (typeof value) {
      case "string":
        return depth === 0 ? value : JSON.stringify(value);
      case "bigint":
        return `${value}n`;
      case "symbol":
        return value.toString();
      case "function":
        return `[Function ${value.name || "anonymous"}]`;
      case "object":
        break;
      default:
        return Object.is(value, -0) ? "-0" : String(value);
    }
    if (value === null) return "null";
    if (value instanceof Error) return value.stack || heading(value);
    if (value instanceof Date) return Number.isNaN(value.getTime()) ? "Invalid Date" : value.toISOString();
    if (value instanceof RegExp) return String(value);
    if (value instanceof Promise) return "Promise {}";
    if (seen.includes(value)) return "[Circular]";
    if (depth > 4) return Array.isArray(value) ? "[Array]" : "[Object]";
    const within = (inner) => inspect(inner, depth + 1, [...seen, value]);
    const list = (open, items, close, all) => {
      const shown = all > items.length ? [...items, `… ${all - items.length} more`] : items;
      if (shown.length === 0) return open + close;
      const line = `${open} ${shown.join(", ")} ${close}`;
      const indent = "  ".repeat(depth + 1);
      return line.length <= 76 && !line.includes("\n")
        ? line
        : `${open}\n${indent}${shown.join(`,\n${indent}`)}\n${"  ".repeat(depth)}${close}`;
    };
    const first = (all) => [...all].slice(0, 100);
    if (Array.isArray(value)) return list("[", value.slice(0, 100).map(within), "]", value.length);
    if (ArrayBuffer.isView(value) && !(value instanceof DataView)) {
      return list(`${value.constructor.name} [`, [...value.subarray(0, 100)].map(String), "]", value.length);
    }
    if (value instanceof Map) {
      const items = first(value).map(([key, inner]) => `${within(key)} => ${within(inner)}`);
      return list("Map {", items, "}", value.size);
    }
    if (value instanceof Set) return list("Set {", first(value).map(within), "}", value.size);
    const keys = Object.keys(value);
    const key = (name) => (/^[A-Za-z_$][\w$]*$/.test(name) ? name : JSON.stringify(name));
    const items = keys.slice(0, 100).map((name) => `${key(name)}: ${within(value[name])}`);
    const kind = Object.getPrototypeOf(value)?.constructor?.name;
    return list(kind && kind !== "Object" ? `${kind} {` : "{", items, "}", keys.length);
  };
  const format = (values) => {
    if (typeof values[0] !== "string" || !values[0].includes("%")) return values.map((value) => inspect(value)).join(" ");
    let at = 1;
    const text = values[0].replace(/%([sdifjoO%])/g, (whole, kind) => {
      if (kind === "%") return "%";
      if (at >= values.length) return whole;
      const value = values[at++];
      if (kind === "s") return inspect(value);
      if (kind === "j") return JSON.stringify(value);
      if (kind === "d" || kind === "f") return String(Number(value));
      if (kind === "i") return String(Math.trunc(Number(value)));
      return inspect(value, 1);
    });
    return [text, ...values.slice(at).map((value) => inspect(value))].join(" ");
  };

  const timers = new Map();
  const counts = new Map();
  let indent = "";
  const line = (stream) => (...values) => say(stream, `${indent}${format(values).replaceAll("\n", `\n${indent}`)}\n`);
  const console = {
    log: line(1),
    info: line(1),
    debug: line(1),
    dir: (value) => line(1)(inspect(value, 1)),
    error: line(2),
    warn: line(2),
    trace: (...values) => line(2)(withFrames(`Trace: ${format(values)}`, here())),
    assert: (condition, ...values) => {
      if (!condition) line(2)("Assertion failed:", ...values);
    },
    count: (label = "default") => {
      counts.set(label, (counts.get(label) ?? 0) + 1);
      line(1)(`${label}: ${counts.get(label)}`);
    },
    group: (...values) => {
      if (values.length > 0) line(1)(...values);
      indent += "  ";
    },
    groupEnd: () => {
      indent = indent.slice(2);
    },
    time: (label = "default") => void timers.set(label, Date.now()),
    timeEnd: (label = "default") => {
      if (timers.has(label)) line(1)(`${label}: ${Date.now() - timers.get(label)} ms`);
      timers.delete(label);
    },
    table: (value) => line(1)(inspect(value, 1)),
  };
  const written = (stream) => ({
    write: (data) => {
      say(stream, typeof data === "string" ? data : String(data));
      return true;
    },
  });

  // Assertions.
  const same = (one, other, seen = []) => {
    if (Object.is(one, other)) return true;
    if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return false;
    if (Object.getPrototypeOf(one) !== Object.getPrototypeOf(other)) return false;
    if (seen.some(([a, b]) => a === one && b === other)) return true;
    const deeper = [...seen, [one, other]];
    if (one instanceof Date) return one.getTime() === other.getTime();
    if (one instanceof RegExp) return String(one) === String(other);
    if (one instanceof Map) {
      return one.size === other.size && [...one].every(([key, value]) => other.has(key) && same(value, other.get(key), deeper));
    }
    if (one instanceof Set) return one.size === other.size && [...one].every((value) => other.has(value));
    const keys = Object.keys(one);
    return keys.length === Object.keys(other).length
      && keys.every((key) => Object.hasOwn(other, key) && same(one[key], other[key], deeper));
  };
  const short = (value) => {
    const shown = inspect(value, 1);
    return shown.length > 2000 ? `${shown.slice(0, 2000)}…` : shown;
  };
  const check = (good, message, otherwise) => {
    if (good) return;
    if (message instanceof Error) throw message;
    throw new AssertionError(message ?? otherwise());
  };
  const holds = (all, part) => {
    if (typeof all === "string") return all.includes(part);
    if (Array.isArray(all)) return all.some((item) => same(item, part));
    if (all instanceof Map || all instanceof Set) return all.has(part);
    throw new TypeError("assert.contains looks into a string, an array, a Map or a Set");
  };
  const fits = (error, expected) => {
    if (expected === undefined) return true;
    if (expected instanceof RegExp) return expected.test(String(error?.message ?? error));
    if (typeof expected === "string") return String(error?.message ?? error).includes(expected);
    if (typeof expected === "function") return error instanceof expected;
    return Object.entries(expected).every(([key, value]) => same(error?.[key], value));
  };
  const assert = (condition, message) => check(condition, message, () => `${short(condition)} is not true`);
  Object.assign(assert, {
    AssertionError,
    ok: assert,
    truthy: assert,
    falsy: (value, message) => check(!value, message, () => `${short(value)} is not false`),
    equal: (actual, expected, message) =>
      check(Object.is(actual, expected), message, () => `expected ${short(expected)}, got ${short(actual)}`),
    notEqual: (actual, other, message) =>
      check(!Object.is(actual, other), message, () => `expected something else than ${short(other)}`),
    deepEqual: (actual, expected, message) =>
      check(same(actual, expected), message, () => `expected ${short(expected)}, got ${short(actual)}`),
    notDeepEqual: (actual, other, message) =>
      check(!same(actual, other), message, () => `expected something else than ${short(other)}`),
    match: (text, pattern, message) =>
      check(pattern.test(text), message, () => `${short(text)} does not match ${pattern}`),
    doesNotMatch: (text, pattern, message) =>
      check(!pattern.test(text), message, () => `${short(text)} matches ${pattern}`),
    contains: (all, part, message) =>
      check(holds(all, part), message, () => `${short(all)} does not contain ${short(part)}`),
    notContains: (all, part, message) =>
      check(!holds(all, part), message, () => `${short(all)} contains ${short(part)}`),
    fail: (message) => check(false, message, () => "failed"),
    throws: (action, expected, message) => {
      let error;
      let threw = false;
      try {
        action();
      } catch (thrown) {
        [error, threw] = [thrown, true];
      }
      check(threw, message, () => "expected an error, and there was none");
      check(fits(error, expected), message, () => `expected another error than ${short(error)}`);
    },
    rejects: async (promise, expected, message) => {
      let error;
      let threw = false;
      try {
        await (typeof promise === "function" ? promise() : promise);
      } catch (thrown) {
        [error, threw] = [thrown, true];
      }
      check(threw, message, () => "expected a rejection, and there was none");
      check(fits(error, expected), message, () => `expected another rejection than ${short(error)}`);
    },
  });
  assert.containsString = assert.contains;
  assert.containsElement = assert.contains;

  // Volumes.
  const names = new WeakMap();
  const contents = (value) => {
    if (typeof value === "string") return { text: value };
    if (value instanceof ArrayBuffer) return { base64: toBase64(new Uint8Array(value)) };
    if (ArrayBuffer.isView(value)) {
      return { base64: toBase64(new Uint8Array(value.buffer, value.byteOffset, value.byteLength)) };
    }
    throw new TypeError("a file's content is a string or a Uint8Array");
  };
  class Volume {
    constructor(name) {
      names.set(this, name);
      Object.defineProperty(this, "name", { value: name, enumerable: true });
    }
    toJSON() {
      return { $volume: names.get(this) };
    }
    async readFiles(paths, options = {}) {
      const one = typeof paths === "string";
      const wanted = one ? [paths] : [...paths];
      const bytes = options.encoding === "bytes";
      const answer = await ask("readFiles", { volume: names.get(this), paths: wanted, bytes });
      const files = {};
      for (const [path, content] of Object.entries(answer)) files[path] = bytes ? fromBase64(content) : content;
      return files;
    }
    async readFile(path, options = {}) {
      const files = await this.readFiles([path], options);
      return files[path];
    }
    writeFiles(files, options = {}) {
      const packed = Object.entries(object(files, "writeFiles")).map(([path, content]) => ({ path, ...contents(content) }));
      return ask("writeFiles", { volume: names.get(this), files: packed, mode: options.mode ?? null }).then(() => undefined);
    }
  }
  const opened = (answer) => new Volume(answer.volume);
  const volumes = {
    create: (options = {}) => ask("volume", object(options, "volumes.create")).then(opened),
  };
  const caches = {
    restore: (options) => ask("restore", object(options, "caches.restore")).then(opened),
    persist: (volume) => {
      if (!names.has(volume)) throw new TypeError("caches.persist takes what caches.restore has given");
      return ask("persist", { volume: names.get(volume) }).then(() => undefined);
    },
  };

  // Tasks, within a job and stage where there is one.
  class Sandbox {
    #id;
    constructor(id, name) {
      this.#id = id;
      Object.defineProperty(this, "name", { value: name, enumerable: true });
    }
    exec(options) {
      const { onOutput } = object(options, "exec");
      return ask("exec", { sandbox: this.#id, options: plain(options) }, onOutput);
    }
    close() {
      return ask("close", { sandbox: this.#id }).then(() => undefined);
    }
  }
  const within = (scope) => {
    const step = (op, what, options) => {
      const { onOutput } = object(options, what);
      return ask(op, { scope, options: plain(options) }, onOutput);
    };
    const runtime = {
      run: (options) => step("run", "runtime.run", options),
      startSandbox: (options) =>
        step("sandbox", "runtime.startSandbox", options).then((answer) => new Sandbox(answer.sandbox, answer.name)),
    };
    const image = { build: (options) => step("build", "image.build", options) };
    return { runtime, image, volumes, caches };
  };
  let ran = 0;
  const grouped = (scope, what, name, options, body) => {
    const [settings, run] = typeof options === "function" ? [{}, options] : [options ?? {}, body];
    if (typeof name !== "string" || !/^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$/.test(name)) {
      throw new TypeError(`the name of a ${what} is up to 31 letters, digits, - and _, not ${short(name)}`);
    }
    if (typeof run !== "function") throw new TypeError(`pipeline.${what} takes a name and a function`);
    if (what === "job" && native.only) {
      if (name !== native.only) return Promise.resolve(undefined);
      ran += 1;
    }
    const inner = [...scope, name];
    const stage = (name, options, body) => grouped(inner, "stage", name, options, body);
    return (async () => run({ name, ...within(inner), stage }, settings))();
  };
  const pipeline = {
    job: (name, options, body) => grouped([], "job", name, options, body),
    stage: (name, options, body) => grouped([], "stage", name, options, body),
  };

  // fetch.
  class Headers {
    #all = new Map();
    constructor(entries) {
      for (const [name, value] of entries) {
        const key = name.toLowerCase();
        this.#all.set(key, this.#all.has(key) ? `${this.#all.get(key)}, ${value}` : value);
      }
    }
    get(name) {
      return this.#all.get(String(name).toLowerCase()) ?? null;
    }
    has(name) {
      return this.#all.has(String(name).toLowerCase());
    }
    entries() {
      return this.#all.entries();
    }
    [Symbol.iterator]() {
      return this.#all.entries();
    }
  }
  class Response {
    #body;
    constructor(answer) {
      this.status = answer.status;
      this.ok = answer.status >= 200 && answer.status < 300;
      this.url = answer.url;
      this.headers = new Headers(answer.headers);
      this.#body = answer;
    }
    async text() {
      return this.#body.text;
    }
    async json() {
      return JSON.parse(this.#body.text);
    }
    async bytes() {
      return fromBase64(this.#body.base64);
    }
  }
  const fetch = (url, options = {}) => {
    const { method, headers, body, timeout } = object(options, "fetch");
    const args = { url: String(url), method: method ?? "GET", headers: headers ?? {}, timeout: timeout ?? null };
    if (body !== undefined && body !== null) args.body = contents(body);
    return ask("fetch", args).then((answer) => new Response(answer));
  };

  const yaml = {
    parse: (text) => JSON.parse(parseYaml(String(text))),
    stringify: (value) => showYaml(JSON.stringify(value) ?? "null"),
  };

  const setTimeout = (action, delay = 0, ...args) => {
    if (typeof action !== "function") throw new TypeError("setTimeout takes a function");
    return timer(() => void action(...args), Math.max(0, Number(delay) || 0));
  };
  const clearTimeout = (id) => {
    if (typeof id === "number") untimer(id);
  };

  const context = Object.freeze(JSON.parse(native.context));
  const top = within([]);
  const globals = {
    runtime: top.runtime,
    image: top.image,
    volumes,
    caches,
    pipeline,
    pipelineContext: context,
    assert,
    yaml,
    console,
    process: Object.freeze({ stdout: written(1), stderr: written(2), env: Object.freeze({}) }),
    setTimeout,
    clearTimeout,
    fetch,
    TaskError,
    Volume,
    Sandbox,
  };
  for (const [name, value] of Object.entries(globals)) {
    Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
  }

  const told = (thrown) => {
    const isError = thrown instanceof Error;
    const text = isError ? (thrown.stack ?? heading(thrown)) : `thrown: ${inspect(thrown)}`;
    return JSON.stringify({ text, status: thrown instanceof TaskError ? thrown.status : null, hint: thrown?.hint ?? null });
  };
  const start = async (entry) => {
    const module = await import(entry);
    const body = module.pipeline;
    if (typeof body !== "function") throw new TypeError("the exported `pipeline` is no function");
    // A name of the script's own hides the global one.
    if (body.job === undefined && Object.isExtensible(body)) Object.assign(body, pipeline);
    await body(context);
    if (native.only && ran === 0) throw new Error(`there is no job ${short(native.only)} in the pipeline`);
  };
  return { start, told };
});
