/** Where a benchmark stands, on standard error. */
import pc from "picocolors";

const onTerminal = () => process.stderr.isTTY === true;

/** Rewritten in place on a terminal; elsewhere each step is a line. */
export function progressLine(name: string): (text: string) => void {
  const started = performance.now();
  return (text) => {
    const at = ((performance.now() - started) / 1000).toFixed(1).padStart(6);
    const line = `${pc.dim(`${at} s`)}  ${name}: ${text}`;
    if (onTerminal()) process.stderr.write(`\r\x1b[K${line}`);
    else process.stderr.write(`${line}\n`);
  };
}

export function clearLine(): void {
  if (onTerminal()) process.stderr.write("\r\x1b[K");
}
