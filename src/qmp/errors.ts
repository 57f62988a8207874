/**
 * What can go wrong on a QMP connection, one class per phase, so that a caller can tell "nobody there" from
 * "QEMU said no" from "QEMU says nothing". Every message is a sentence that can be shown to an operator as it
 * is.
 */

/** Base of all errors of src/qmp. */
export class QmpError extends Error {
  override name = "QmpError";
}

/** The socket could not be opened. */
export class QmpConnectError extends QmpError {
  override name = "QmpConnectError";
}

/** The socket opened, but what is behind it did not greet or refused `qmp_capabilities`. */
export class QmpNegotiationError extends QmpError {
  override name = "QmpNegotiationError";
}

/** QEMU answered a command with an error. */
export class QmpCommandError extends QmpError {
  override name = "QmpCommandError";

  /**
   * @param errorClass QEMU's class, nearly always "GenericError" (qapi/error.json)
   * @param description QEMU's own sentence
   */
  constructor(
    readonly command: string,
    readonly commandArguments: Readonly<Record<string, unknown>> | undefined,
    readonly errorClass: string,
    readonly description: string,
  ) {
    const sent = commandArguments === undefined ? "" : ` ${JSON.stringify(commandArguments)}`;
    super(`QEMU refused ${command}: ${description} (${errorClass}; sent: ${command}${sent})`);
  }
}

/** Nothing came in time. QEMU may still carry the command out later. */
export class QmpTimeoutError extends QmpError {
  override name = "QmpTimeoutError";

  constructor(
    /** The command or event that was waited for. */
    readonly waitedFor: string,
    readonly timeoutMs: number,
    detail: string,
  ) {
    super(`${waitedFor}: nothing within ${timeoutMs} ms. ${detail}`);
  }
}

/** The connection ended, by either side. */
export class QmpClosedError extends QmpError {
  override name = "QmpClosedError";
}

/**
 * The other side sent something that is not QMP; the connection is given up because replies may be missing.
 */
export class QmpProtocolError extends QmpError {
  override name = "QmpProtocolError";
}

/** QEMU's answer to a command is not what QEMU's schema says; the command may have been carried out. */
export class QmpAnswerError extends QmpError {
  override name = "QmpAnswerError";

  constructor(
    readonly command: string,
    /** What is wrong with the answer. */
    readonly mistakes: string,
    options?: ErrorOptions,
  ) {
    super(`QEMU answered ${command} with something else than its schema says: ${mistakes}`, options);
  }
}

/** The caller's AbortSignal ended a wait. */
export class QmpAbortedError extends QmpError {
  override name = "QmpAbortedError";
}
