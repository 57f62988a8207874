/** What keeps the machine's clock (adjtimex(2), asked without changing anything). */
import { Arena, check, libc } from "./libc.ts";

const TIMEX_BYTES = 208;
const FREQUENCY = 16;
const MAXIMUM_ERROR = 24;
const ESTIMATED_ERROR = 32;
const STATUS = 40;
const STA_UNSYNC = 0x40;
const TIME_ERROR = 5;

interface ClockState {
  /** Something (chrony, ntpd, systemd-timesyncd, a hypervisor's daemon) disciplines the clock. */
  synchronised: boolean;
  /** By how much the clock's rate is corrected. */
  frequencyPpm: number;
  maximumErrorUs: number;
  estimatedErrorUs: number;
}

export function clockState(): ClockState {
  const arena = new Arena(4096);
  try {
    const timex = arena.allocate(TIMEX_BYTES);
    const state = check(libc.adjtimex(arena.address + timex), "Cannot ask for the clock's state");
    const { view } = arena;
    return {
      synchronised: state !== TIME_ERROR && (view.getInt32(timex + STATUS, true) & STA_UNSYNC) === 0,
      frequencyPpm: Number(view.getBigInt64(timex + FREQUENCY, true)) / 65536,
      maximumErrorUs: Number(view.getBigInt64(timex + MAXIMUM_ERROR, true)),
      estimatedErrorUs: Number(view.getBigInt64(timex + ESTIMATED_ERROR, true)),
    };
  } finally {
    arena.close();
  }
}
