/** What a lab can be asked for. */
import type { WrongQemu } from "./assets.ts";

export interface LabOptions {
  name: string;
  /** Another guest; its addresses are its own business. */
  kernel?: string;
  initrd?: string;
  append?: string;
  /**
   * A raw image that host a's disk begins as a copy of; the disk of host b is as long. Its length is a
   * multiple of 64 KiB. Default: 64 MiB of zeros.
   */
  diskImage?: string;
  /** The same for a second disk, "disk1". Default: there is none. */
  secondDiskImage?: string;
  /**
   * The guest says on its first serial port when it serves (guestReadyPattern) and is waited for, as the
   * lab's own always is.
   */
  ready?: boolean;
  memoryMib: number;
  /** Queues of the agents' VM's network card, and as many processors. Default 1. */
  queues?: number;
  /** The lab's own guest has a second network card, with SECOND_GUEST_IPV4. */
  secondCard?: boolean;
  /** The agents attach to QEMUs that the lab starts; those that are lost are for startQemu(). */
  attached?: boolean;
  /** "none": one unprotected VM without agents. */
  proxy: "agent" | "none";
  /** QEMUs that cannot do COLO, on both hosts: the VM is then left alone, and the lab is up when it runs. */
  wrongQemu?: WrongQemu;
  /** Lines added to the agents' configuration, in their [[vm]] table; "%h" in them is the host's letter. */
  vmConfig?: string;
  /** Lines added to the agents' [agent] table. */
  agentConfig?: string;
  /** QEMU's own TLS for its streams between the hosts. */
  tls?: boolean;
  /**
   * The niceness of agents, their QEMUs and the witness, -20 to 19 (nice(1)). Default: that of the caller.
   * On hosts of their own, agents have -10 (deploy/colo-agent.service).
   */
  niceness?: number;
}
