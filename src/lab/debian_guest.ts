/** The lab's options that make its VM the Debian guest with nginx, Redis and PostgreSQL (guest/README.md). */

import { guestKernel } from "../host/installed.ts";
import { debianGuestDisk, debianGuestInitrd, guestCommandLine } from "./assets.ts";
import type { LabOptions } from "./lab_options.ts";
import { GUEST_IPV4, GUEST_IPV6 } from "./network.ts";

const MEMORY_MIB = 512;

export function debianGuestOptions(): Pick<
  LabOptions,
  "kernel" | "initrd" | "append" | "diskImage" | "ready" | "memoryMib"
> {
  return {
    kernel: guestKernel(),
    initrd: debianGuestInitrd(),
    append: guestCommandLine({ ip4: `${GUEST_IPV4}/24`, ip6: `${GUEST_IPV6}/64` }),
    diskImage: debianGuestDisk(),
    ready: true,
    memoryMib: MEMORY_MIB,
  };
}
