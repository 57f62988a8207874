/** The configuration file of a lab host's agent, and the machine that it runs. */
import { join } from "node:path";
import { guestKernel, qemuArgv, qemuEnvironment, qemuImgArgv } from "../host/installed.ts";
import { guestCommandLine, guestInitrd, wrongQemu } from "./assets.ts";
import { type LabState, labDirectory } from "./lab_state.ts";
import {
  CLIENT_IPV4,
  GUEST_IPV4,
  GUEST_IPV6,
  GUEST_MAC,
  HOST_ADDRESSES,
  type HostLetter,
  SECOND_GUEST_IPV4,
  SECOND_GUEST_MAC,
  SECOND_TAP,
  TAP,
} from "./network.ts";
import { LAB_PORTS } from "./ports.ts";
import { LAB_NODES, type LabMachine, labArguments, labPaths } from "./qemu.ts";

export const VM_NAME = "vm1";

/** Path of a file, or folder, of the lab's certificates. */
export const certificatePath = (lab: string, file = ""): string =>
  join(labDirectory(lab), "certificates", file);

/** The guest's machine on one host. */
export function labMachine(state: LabState, letter: HostLetter): LabMachine {
  const { options, ownGuest, hosts } = state;
  const initrd = ownGuest ? guestInitrd() : options.initrd;
  const append = ownGuest
    ? guestCommandLine(
        { ip4: `${GUEST_IPV4}/24`, ip6: `${GUEST_IPV6}/64` },
        [options.secondCard ? `colo.second4=${SECOND_GUEST_IPV4}/24` : "", options.append ?? ""]
          .join(" ")
          .trim(),
      )
    : options.append;
  return {
    directory: hosts[letter].directory,
    memoryMib: options.memoryMib,
    cpus: options.queues ?? 1,
    // Its interface is another one there, and without checkpoints there is nothing for it to do.
    ...(options.wrongQemu === undefined ? {} : { plugin: false as const }),
    kernel: options.kernel ?? guestKernel(),
    ...(initrd === undefined ? {} : { initrd }),
    ...(append === undefined ? {} : { append }),
  };
}

/** A string of TOML: a basic string has JSON's escapes (https://toml.io/en/v1.0.0#string). */
const text = (value: string): string => JSON.stringify(value);

/** The file's text. */
export function agentConfig(state: LabState, letter: HostLetter): string {
  const { name, options } = state;
  const { directory, socket } = state.hosts[letter];
  const other = letter === "a" ? "b" : "a";
  const { lan, replication } = HOST_ADDRESSES[letter];
  const certificate = (file: string) => text(certificatePath(name, file));
  const tls = options.tls === true ? `\n[tls]\ndirectory = ${certificate(`${name}-${letter}-qemu`)}\n` : "";
  return `[agent]
name = ${text(`${name}-${letter}`)}
control = "${replication}:${LAB_PORTS.control}"
api = "${lan}:${LAB_PORTS.api}"
socket = ${text(socket)}
log_level = "debug"
state_directory = ${text(directory)}
${options.agentConfig ?? ""}

[peer]
name = ${text(`${name}-${other}`)}
control = "${HOST_ADDRESSES[other].replication}:${LAB_PORTS.control}"

[client_path]
local = "${lan}:${LAB_PORTS.clientPath}"
peer = "${HOST_ADDRESSES[other].lan}:${LAB_PORTS.clientPath}"
key_file = ${text(join(labDirectory(name), "heartbeat.key"))}

[arbiter]
type = "witness"
url = "https://${CLIENT_IPV4}:${LAB_PORTS.witness}"
ca = ${certificate("ca.pem")}
certificate = ${certificate(`${name}-${letter}.pem`)}
key = ${certificate(`${name}-${letter}.key`)}
${tls}
[[vm]]
name = "${VM_NAME}"
uplink = "uplink"
${options.attached ? `qmp = ${text(labPaths(directory).qmp)}` : ""}
initial_role = "${letter === "a" ? "primary" : "secondary"}"
${options.vmConfig?.replaceAll("%h", letter) ?? ""}

${options.attached ? ATTACHED_TABLES : managedTables(state, letter)}`;
}

/** The agent attaches to a QEMU that the lab starts. */
const ATTACHED_TABLES = `[[vm.nic]]
tap = "${TAP}"

[[vm.disk]]
quorum_node = "${LAB_NODES.quorum}"
export_node = "${LAB_NODES.disk}"
`;

/** The agent starts QEMU. */
function managedTables(state: LabState, letter: HostLetter): string {
  const { options } = state;
  const { directory, disk, secondDisk } = state.hosts[letter];
  const qemu =
    options.wrongQemu === undefined
      ? { argv: qemuArgv(), environment: qemuEnvironment() }
      : wrongQemu(options.wrongQemu);
  const secondCard = options.secondCard
    ? `\n[[vm.nic]]\ntap = "${SECOND_TAP}"\nmac = "${SECOND_GUEST_MAC}"\ntunnel_id = 2\n`
    : "";
  const secondDiskTable =
    options.secondDiskImage === undefined ? "" : `\n[[vm.disk]]\npath = ${text(secondDisk)}\n`;
  return `[[vm.nic]]
tap = "${TAP}"
mac = "${GUEST_MAC}"
queues = ${options.queues ?? 1}
${secondCard}
[[vm.disk]]
path = ${text(disk)}
quorum_node = "${LAB_NODES.quorum}"
export_node = "${LAB_NODES.disk}"
${secondDiskTable}
[vm.qemu]
command = ${JSON.stringify(qemu.argv)}
img_command = ${JSON.stringify(qemuImgArgv())}
environment = { QEMU_MODULE_DIR = ${text(qemu.environment.QEMU_MODULE_DIR ?? "")} }
directory = ${text(directory)}
arguments = ${JSON.stringify(labArguments(labMachine(state, letter)))}
`;
}
