/** Loading, adopting, attaching and removing, and what is said when it cannot be done. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { lastVerifierLines } from "../../src/ffi/bpf_object.ts";
import { Btf } from "../../src/ffi/btf.ts";
import { DataPlane, type DataPlaneOptions } from "../../src/ffi/data_plane.ts";
import { CONNECTION_KEY, RECORD_HEADER_BYTES, ROLE, SLEEP } from "../../src/ffi/layout.ts";
import { ifindex } from "../../src/ffi/libc.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import { Ring } from "../../src/ffi/ring.ts";
import { grantLease, loadFresh, OBJECT, PINS, SETTINGS, VERDICT } from "../bpf/data_plane_under_test.ts";
import { segment, tcp } from "../bpf/frames.ts";
import { addNamespace, ip, removeNamespaces, run } from "../bpf/network.ts";

const NAME = "data-plane";
const PIN = join(PINS, NAME);
let directory: string;
const open: DataPlane[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-"));
  DataPlane.remove(PIN, []);
});
afterEach(() => {
  for (const plane of open.splice(0)) plane.close();
  DataPlane.remove(PIN, []);
  rmSync(directory, { recursive: true });
});

function keep(plane: DataPlane): DataPlane {
  open.push(plane);
  return plane;
}

const load = (options: Partial<DataPlaneOptions> = {}) =>
  keep(
    DataPlane.load({
      objectPath: OBJECT,
      pinDirectory: PIN,
      settings: SETTINGS,
      ringBytes: 65536,
      inputRingBytes: 65536,
      connectionsMax: 64,
      ...options,
    }),
  );

/** Of the first worker's rings, and the one for input. */
function ringBytes({ workers: [{ primary, secondary }], input }: DataPlane) {
  return { primary: primary.bytes, secondary: secondary.bytes, input: input.bytes };
}

describe("a fresh data plane", () => {
  test("lets nothing pass and has counted nothing", () => {
    const plane = load();
    expect(plane.state.role).toBe(ROLE.BLOCKED);
    expect(plane.state.leaseDeadlineNs).toBe(0n);
    expect(Object.values(plane.counters()).every((count) => count === 0)).toBe(true);
    expect(plane.connections.count()).toBe(0);
    expect(ringBytes(plane)).toEqual({ primary: 65536, secondary: 65536, input: 65536 });
  });

  test("has 64 MiB for each VM's output and 8 MiB for input unless told otherwise", () => {
    const plane = keep(DataPlane.load({ objectPath: OBJECT, pinDirectory: PIN, settings: SETTINGS }));
    expect(ringBytes(plane)).toEqual({ primary: 2 ** 26, secondary: 2 ** 26, input: 2 ** 23 });
  });

  test("is pinned", () => {
    load();
    expect(readdirSync(PIN).sort()).toEqual([
      "connections",
      "counters",
      "doorbell_rings",
      "from_tunnel",
      "from_vm",
      "inject",
      "input_ring",
      "primary_rings",
      "release_frames",
      "secondary_rings",
      "state_map",
      "to_vm",
    ]);
  });

  test("keeps what is written to its state, 64-bit deadlines whole", () => {
    const { state } = load();
    Object.assign(state, {
      role: ROLE.SECONDARY,
      epoch: 0xffff_ffff,
      rewriteEpoch: 5,
      divertInput: true,
      consumerSleeping: SLEEP.ANY,
      leaseDeadlineNs: 0x1234_5678_9abc_def0n,
    });
    const again = load().state;
    expect(again.role).toBe(ROLE.SECONDARY);
    expect(again.epoch).toBe(0xffff_ffff);
    expect(again.rewriteEpoch).toBe(5);
    expect(again.divertInput).toBe(true);
    expect(again.consumerSleeping).toBe(SLEEP.ANY);
    expect(again.leaseDeadlineNs).toBe(0x1234_5678_9abc_def0n);
  });
});

describe("a later agent", () => {
  test("finds role, counters, connections and held frames", () => {
    const first = load();
    first.state.role = ROLE.SECONDARY;
    first.testRun("from_vm", segment({ sequence: 9, flags: tcp.SYN | tcp.ACK }));
    first.state.role = ROLE.PRIMARY;
    grantLease(first);
    first.testRun("from_vm", segment({ sequence: 1234, payload: [1] }));
    open.pop()!.close();

    const second = load();
    expect(second.state.role).toBe(ROLE.PRIMARY);
    expect(second.counters()).toMatchObject({ held: 1, forwarded: 1 });
    expect(second.connections.count()).toBe(1);
    const ring = new Ring(second.workers[0].primary);
    const at = ring.offset(ring.next());
    expect(ring.view.getUint32(at + RECORD_HEADER_BYTES + 38)).toBe(1234);
    ring.close();
  });

  test("keeps the sizes that are there", () => {
    load();
    expect(ringBytes(load({ ringBytes: 2 ** 20, inputRingBytes: 2 ** 20 }))).toEqual({
      primary: 65536,
      secondary: 65536,
      input: 65536,
    });
  });

  test("keeps the number of workers, and what is held for each of them", () => {
    const first = load({ workers: 3 });
    first.state.role = ROLE.PRIMARY;
    grantLease(first);
    const count = 50;
    for (let port = 0; port < count; port++) first.testRun("from_vm", segment({ clientPort: port }));
    const held = (plane: DataPlane) =>
      plane.workers.map(({ primary }) => {
        const ring = new Ring(primary);
        let records = 0;
        while (ring.next() >= 0) records++;
        ring.close();
        return records;
      });
    const before = held(first);
    expect(before.every((records) => records > 0)).toBe(true);
    expect(before.reduce((sum, records) => sum + records, 0)).toBe(count);
    open.pop()!.close();

    const second = load({ workers: 1 });
    expect(second.workers).toHaveLength(3);
    expect(held(second)).toEqual(before);
    second.testRun("from_vm", segment({ clientPort: 0 }));
    expect(held(second).reduce((sum, records) => sum + records, 0)).toBe(count + 1);
  });

  test("makes the rings that an agent which died in the middle had not made yet", () => {
    const first = load({ workers: 2 });
    const { id } = JSON.parse(
      run("bpftool", "-j", "map", "show", "pinned", join(PIN, "secondary_rings")),
    ) as { id: number };
    run("bpftool", "map", "delete", "id", String(id), "key", "1", "0", "0", "0");
    open.splice(open.indexOf(first), 1);
    first.close();
    const second = load({ workers: 2 });
    expect(second.workers.map(({ secondary }) => secondary.bytes)).toEqual([65536, 65536]);
  });

  test.each([0, 17, 1.5])("refuses %p workers", (workers) => {
    expect(() => load({ workers })).toThrow("from 1 to 16");
  });

  test("refuses maps that it cannot read", () => {
    load();
    rmSync(join(PIN, "state_map"));
    run(
      "bpftool",
      "map",
      "create",
      join(PIN, "state_map"),
      "type",
      "array",
      "key",
      "4",
      "value",
      "8",
      "entries",
      "1",
      "name",
      "other",
    );
    expect(() => load()).toThrow(
      `The map pinned at ${join(PIN, "state_map")} was made by another version of the agent`,
    );
  });
});

describe("what cannot be loaded", () => {
  test("an object that is not there", () => {
    expect(() => load({ objectPath: join(directory, "none.o") })).toThrow("run scripts/build-bpf");
  });

  test("an object that is none", () => {
    const path = join(directory, "bad.o");
    writeFileSync(path, "no ELF");
    expect(() => load({ objectPath: path })).toThrow(`Cannot read the BPF object ${path}`);
  });

  test("pins outside of a BPF file system", () => {
    expect(() => load({ pinDirectory: join(directory, "pins") })).toThrow(
      "is not on a BPF file system: use a directory under",
    );
  });

  test.each([
    [{ injectMark: 0 }, "different and not 0"],
    [{ injectMark: SETTINGS.deliverMark }, "different and not 0"],
    [{ tunnelId: 256 }, "from 0 to 255"],
  ])("settings that cannot be meant: %o", (change, message) => {
    expect(() => load({ settings: { ...SETTINGS, ...change } })).toThrow(message);
  });

  /** bpf/colo.bpf.c with another program `inject`. */
  function compileWith(inject: string): string {
    const source = join(directory, "changed.bpf.c");
    const object = join(directory, "changed.bpf.o");
    const bpf = join(import.meta.dir, "../../bpf");
    writeFileSync(
      source,
      `#define inject original\n#include "${bpf}/colo.bpf.c"\n#undef inject\nSEC("tc") int inject(struct ` +
        `__sk_buff *skb)\n{\n${inject}\n}\n`,
    );
    const headers = `/usr/include/${run("uname", "-m").trim()}-linux-gnu`;
    run("clang", "-g", "-O2", "-target", "bpf", "-mcpu=v3", "-isystem", headers, "-c", source, "-o", object);
    return object;
  }

  test("a program that the verifier refuses: its name and the verifier's reason are said", () => {
    const object = compileWith("return *(int *)(__u64)skb->mark;");
    expect(() => load({ objectPath: object })).toThrow(
      /verifier refuses the program inject:\n(.*\n)*.*R\d invalid mem access 'scalar'/,
    );
    expect(() => load({ objectPath: object })).not.toThrow(/processed \d+ insns/);
  });

  test("an object of another version, which lacks a program", () => {
    const object = join(directory, "renamed.o");
    run("cp", OBJECT, object);
    run("sed", "-i", "s/from_tunnel/from_funnel/g", object);
    expect(() => load({ objectPath: object })).toThrow(
      "The BPF object has no program from_tunnel; build it again with scripts/build-bpf",
    );
  });

  test("a refused object leaves nothing in use behind", () => {
    const object = compileWith("return *(int *)(__u64)skb->mark;");
    expect(() => load({ objectPath: object })).toThrow();
    expect(load().state.role).toBe(ROLE.BLOCKED);
  });
});

describe("the end of a verifier log", () => {
  test("is the source line and the reason, without what the verifier says about itself", () => {
    const log = [
      "func#0 @0",
      "0: R1=ctx() R10=fp0",
      "; return *(int *)p; @ a.c:3",
      "4: (61) r0 = *(u32 *)(r1 +0)",
      "R1 invalid mem access 'scalar'",
      "verification time 40 usec",
      "processed 5 insns (limit 1000000) max_states_per_insn 0",
      "",
    ].join("\n");
    expect(lastVerifierLines(log)).toBe(
      "; return *(int *)p; @ a.c:3\n4: (61) r0 = *(u32 *)(r1 +0)\nR1 invalid mem access 'scalar'",
    );
  });

  test("is empty if there is none", () => {
    expect(lastVerifierLines("")).toBe("");
  });
});

describe("attaching", () => {
  const PREFIX = "colo-test-attach-";
  const NAMESPACE = `${PREFIX}a`;

  beforeEach(() => {
    removeNamespaces(PREFIX);
    addNamespace(NAMESPACE);
    for (const name of ["tap", "tunnel", "inject"]) ip(`-n ${NAMESPACE} link add ${name} type bridge`);
  });
  afterEach(() => removeNamespaces(PREFIX));

  const filters = (device: string, way: string) =>
    (
      JSON.parse(run("tc", "-j", "-n", NAMESPACE, "filter", "show", "dev", device, way)) as {
        options?: { bpf_name?: string; prog?: { name: string; id: number } };
      }[]
    )
      .filter((filter) => filter.options !== undefined)
      .map((filter) => filter.options!.prog!);

  const names = () =>
    Object.fromEntries(
      [
        ["tap", "ingress"],
        ["tap", "egress"],
        ["tunnel", "ingress"],
        ["inject", "egress"],
      ].map(([device, way]) => [`${device} ${way}`, filters(device, way).map((program) => program.name)]),
    );

  const ATTACHED = {
    "tap ingress": ["from_vm"],
    "tap egress": ["to_vm"],
    "tunnel ingress": ["from_tunnel"],
    "inject egress": ["inject"],
  };
  const NONE = { "tap ingress": [], "tap egress": [], "tunnel ingress": [], "inject egress": [] };

  const indexes = () =>
    inNamespace(NAMESPACE, () => ({
      tapIfindex: ifindex("tap"),
      tunnelIfindex: ifindex("tunnel"),
      injectIfindex: ifindex("inject"),
    }));

  test("each program is where it belongs, once, however often it is attached", () => {
    const plane = load();
    inNamespace(NAMESPACE, () => plane.attach(indexes()));
    inNamespace(NAMESPACE, () => plane.attach(indexes()));
    expect(names()).toEqual(ATTACHED);
  });

  test("filters outlive the agent, and a later one replaces them", () => {
    const first = load();
    inNamespace(NAMESPACE, () => first.attach(indexes()));
    const before = filters("tap", "ingress")[0].id;
    open.pop()!.close();
    expect(names()).toEqual(ATTACHED);

    const second = load();
    inNamespace(NAMESPACE, () => second.attach(indexes()));
    expect(names()).toEqual(ATTACHED);
    expect(filters("tap", "ingress")[0].id).not.toBe(before);
  });

  test("other people's filters stay", () => {
    const plane = load();
    const tc = (line: string) => run("nsenter", `--net=/run/netns/${NAMESPACE}`, "tc", ...line.split(" "));
    tc("qdisc add dev tap clsact");
    tc(`filter add dev tap ingress pref 5 bpf direct-action pinned ${PIN}/inject`);
    inNamespace(NAMESPACE, () => plane.attach(indexes()));
    expect(filters("tap", "ingress").map((program) => program.name)).toEqual(["from_vm", "inject"]);
    inNamespace(NAMESPACE, () => DataPlane.remove(PIN, Object.values(indexes())));
    expect(filters("tap", "ingress").map((program) => program.name)).toEqual(["inject"]);
  });

  test("after remove() there are neither filters nor pins, and a second time changes nothing", () => {
    const plane = load();
    inNamespace(NAMESPACE, () => plane.attach(indexes()));
    const all = Object.values(indexes());
    for (let i = 0; i < 2; i++) {
      inNamespace(NAMESPACE, () => DataPlane.remove(PIN, all));
      expect(names()).toEqual(NONE);
      expect(existsSync(PIN)).toBe(false);
    }
  });

  test("a tap whose qdisc has no hook for frames to the VM is refused, and says how to mend it", () => {
    const plane = load();
    run("nsenter", `--net=/run/netns/${NAMESPACE}`, "tc", ..."qdisc add dev tap ingress".split(" "));
    expect(() => inNamespace(NAMESPACE, () => plane.attach(indexes()))).toThrow(
      "tc qdisc del dev NAME ingress",
    );
    run("nsenter", `--net=/run/netns/${NAMESPACE}`, "tc", ..."qdisc del dev tap ingress".split(" "));
    inNamespace(NAMESPACE, () => plane.attach(indexes()));
    expect(names()).toEqual(ATTACHED);
  });

  test("an interface that is not there is named", () => {
    const plane = load();
    expect(() =>
      inNamespace(NAMESPACE, () => plane.attach({ ...indexes(), tunnelIfindex: 4_000_000 })),
    ).toThrow("interface 4000000");
  });
});

describe("connections", () => {
  test("more than one batch of them is counted, exported and cleared", () => {
    const plane = loadFresh("many", { connectionsMax: 5000 });
    const heir = loadFresh("many-heir", { connectionsMax: 5000 });
    try {
      for (let port = 1; port <= 3000; port++) {
        plane.state.role = ROLE.SECONDARY;
        plane.testRun("from_vm", segment({ sequence: 5, flags: tcp.SYN | tcp.ACK, clientPort: port }));
        plane.state.role = ROLE.SOLO;
        plane.testRun("to_vm", segment({ from: "client", acknowledgment: 100, clientPort: port }));
      }
      expect(plane.connections.count()).toBe(3000);
      const exported = plane.connections.export();
      const ports = new Set<number>();
      const view = new DataView(exported.buffer, exported.byteOffset, exported.byteLength);
      for (let at = 0; at < exported.length; at += 72)
        ports.add(view.getUint16(at + CONNECTION_KEY.client_port_be));
      expect(ports.size).toBe(3000);
      expect(heir.connections.import(exported)).toBe(3000);
      expect(heir.connections.count()).toBe(3000);
      expect(plane.connections.clear()).toBe(3000);
      expect(plane.connections.count()).toBe(0);
    } finally {
      for (const each of [plane, heir]) each.close();
      for (const name of ["many", "many-heir"]) DataPlane.remove(join(PINS, name), []);
    }
  });

  test("an import that is larger than the map fails and says so", () => {
    const plane = load();
    expect(() => plane.connections.import(new Uint8Array(72 * 70).map((_, i) => i % 251))).toThrow(
      "Cannot take over a connection",
    );
  });
});

describe("the kernel's type information", () => {
  const kernel = Btf.ofKernel();

  test("names functions that are there, and only those", () => {
    expect(kernel.functions(["bpf_cast_to_kern_ctx", "bpf_no_such_function", "sk_buff"])).toEqual(
      new Set(["bpf_cast_to_kern_ctx"]),
    );
  });

  test("has constants, of unnamed enums too", () => {
    const dump = run("bpftool", "btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "c");
    const value = /SKB_GSO_TCPV6 = (\d+)/.exec(dump)![1];
    expect(kernel.enumerators(["SKB_GSO_TCPV6", "SKB_GSO_NO_SUCH"])).toEqual(
      new Map([["SKB_GSO_TCPV6", Number(value)]]),
    );
  });

  test("something else is refused", () => {
    expect(() => new Btf(new Uint8Array(100))).toThrow("no BTF");
  });
});

test("a verdict is the program's", () => {
  expect(load().testRun("from_vm", segment()).verdict).toBe(VERDICT.SHOT);
});
