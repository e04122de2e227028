// Numbers as people read them. Values come in the type's unit: nanoseconds, bytes or count.

const NS = 1e9;

function significant(value: number): string {
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function duration(nanoseconds: number): string {
  if (nanoseconds < 1e3) return `${nanoseconds.toFixed(0)} ns`;
  if (nanoseconds < 1e6) return `${significant(nanoseconds / 1e3)} µs`;
  if (nanoseconds < NS) return `${significant(nanoseconds / 1e6)} ms`;
  const seconds = nanoseconds / NS;
  if (seconds < 120) return `${significant(seconds)} s`;
  const whole = Math.round(seconds);
  if (whole < 7200) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

function size(bytes: number): string {
  const steps = ["B", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  let value = bytes;
  while (value >= 1024 && step < steps.length - 1) {
    value /= 1024;
    step += 1;
  }
  return step === 0 ? `${value} B` : `${significant(value)} ${steps[step]}`;
}

/** A whole number with thousands separated. */
export function count(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

/** A value in the words of its unit: `4.31 s`, `12.0 MiB`, `1,204`. */
export function human(value: number, unit: string): string {
  if (value === 0) return "0";
  if (unit === "nanoseconds") return duration(value);
  if (unit === "bytes") return size(value);
  return count(value);
}

/** A part of a whole: `12.3 %`; nothing is rounded to zero that is not zero. */
export function share(part: number, whole: number): string {
  if (whole <= 0 || part === 0) return "0 %";
  const percent = (100 * part) / whole;
  if (percent < 0.01) return "<0.01 %";
  return `${percent >= 99.95 ? percent.toFixed(0) : percent >= 10 ? percent.toFixed(1) : percent.toFixed(2)} %`;
}

/** Local wall-clock time of Unix seconds, with the date where it is not today's. */
export function clock(unixSeconds: number): string {
  const at = new Date(unixSeconds * 1000);
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString("en-CA")} ${time}`;
}

const TYPE_NAMES: Record<string, string> = {
  "process_cpu:cpu": "CPU time",
  "process_cpu:samples": "CPU samples",
  "block:delay": "Blocked time",
  "block:contentions": "Blocked calls",
  "mutex:delay": "Lock wait time",
  "mutex:contentions": "Lock waits",
  "memory:alloc_objects": "Allocated objects",
  "memory:alloc_space": "Allocated memory",
  "memory:inuse_objects": "Live objects",
  "memory:inuse_space": "Live memory",
  "goroutine:goroutine": "Goroutines",
  stitched: "Endpoint, all tiers",
};

/** What a profile type is called on the page; one that is not known keeps its identifier. */
export function typeName(id: string): string {
  return TYPE_NAMES[id.split(":", 2).join(":")] ?? id;
}

/** Types in the order of the table above: time before counts, the unknown last. */
export function typeRank(id: string): number {
  const rank = Object.keys(TYPE_NAMES).indexOf(id.split(":", 2).join(":"));
  return rank < 0 ? Number.MAX_SAFE_INTEGER : rank;
}
