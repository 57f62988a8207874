/**
 * One logger for the process: a line of JSON per event on standard error, so that a journal can be searched.
 */
import { type ConsolaInstance, createConsola, LogLevels } from "consola";

export type Fields = Record<string, unknown>;

export interface Logger {
  error(message: string, fields?: Fields): void;
  warn(message: string, fields?: Fields): void;
  info(message: string, fields?: Fields): void;
  debug(message: string, fields?: Fields): void;
  child(fields: Fields): Logger;
}

const LEVELS = {
  error: LogLevels.error,
  warn: LogLevels.warn,
  info: LogLevels.info,
  debug: LogLevels.debug,
} as const;

export type LogLevel = keyof typeof LEVELS;

function plain(value: unknown): unknown {
  if (typeof value === "bigint") return value.toString();
  if (value instanceof Error) return value.message;
  return value;
}

function wrap(sink: ConsolaInstance, bound: Fields): Logger {
  const log = (level: LogLevel) => (message: string, fields?: Fields) => {
    sink[level]({ message, args: [{ ...bound, ...fields }] });
  };
  return {
    error: log("error"),
    warn: log("warn"),
    info: log("info"),
    debug: log("debug"),
    child: (fields) => wrap(sink, { ...bound, ...fields }),
  };
}

/** A logger that writes everything at `level` and above. */
export function createLogger(level: LogLevel, fields: Fields = {}): Logger {
  const sink = createConsola({
    level: LEVELS[level],
    reporters: [
      {
        log: (entry) => {
          const [message, extra] =
            entry.args.length > 1 ? [entry.args[0], entry.args[1]] : [entry.message, entry.args[0]];
          const record = {
            time: entry.date.toISOString(),
            level: entry.type,
            message,
            ...(extra as Fields),
          };
          process.stderr.write(`${JSON.stringify(record, (_key, value) => plain(value))}\n`);
        },
      },
    ],
  });
  return wrap(sink, fields);
}
