/**
 * Network namespaces (setns(2)): sockets and interface look-ups belong to the namespace that the calling
 * thread is in when they are made. The rest of the process stays where it is.
 */
import { closeSync, openSync } from "node:fs";
import { check, libc } from "./libc.ts";

const CLONE_NEWNET = 0x40000000;

/**
 * Runs `action` with this thread in another network namespace, and returns to the one it came from. The
 * action must not be asynchronous: other code of the thread would run in between.
 *
 * @param name as `ip netns` knows it
 */
export function inNamespace<T>(name: string, action: () => T): T {
  const home = openSync("/proc/thread-self/ns/net", "r");
  try {
    const away = openSync(`/run/netns/${name}`, "r");
    try {
      check(libc.setns(away, CLONE_NEWNET), `Cannot enter the network namespace ${name}`);
    } finally {
      closeSync(away);
    }
    try {
      return action();
    } finally {
      check(libc.setns(home, CLONE_NEWNET), "Cannot return from a network namespace");
    }
  } finally {
    closeSync(home);
  }
}
