/**
 * One logger for the process: a line of JSON per event on standard error, so that a journal can be searched.
 */
import { type ConsolaInstance, createConsola, LogLevels } from "consola";

type Fields = Record<string, unknown>;

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

type LogLevel = keyof typeof LEVELS;

/** What JSON.stringify() has no form for: a bigint as text, an error with its name, cause and stack. */
function plain(value: unknown): unknown {
  if (typeof value === "bigint") return value.toString();
  return value instanceof Error ? errorFields(value) : value;
}

/** An error as a journal can be searched for it; `cause` only if it is an error. */
interface ErrorFields {
  name: string;
  message: string;
  /** The lines of the stack, without the message. */
  stack: string[];
  cause?: ErrorFields;
}

/** Of an error whose causes are a circle. */
const CAUSES_MAX = 10;

function errorFields({ name, message, stack, cause }: Error, depth = 0): ErrorFields {
  const lines = stack?.split("\n").map((line) => line.trim()) ?? [];
  const fields: ErrorFields = { name, message, stack: lines.filter((line) => line.startsWith("at ")) };
  if (cause instanceof Error && depth < CAUSES_MAX) fields.cause = errorFields(cause, depth + 1);
  return fields;
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
