/** What a divergence leaves for people: copies of the two frames, taken while they are still in the rings. */
import type { Divergence, RecordMemory } from "../compare/comparer.ts";
import { cutFrames, type ReportedDivergence } from "../divergence/recorder.ts";
import { RECORD, RECORD_HEADER_BYTES } from "../ffi/layout.ts";

function frameAt(memory: RecordMemory, offset: number | undefined): Uint8Array | undefined {
  if (offset === undefined) return undefined;
  const start = offset + RECORD_HEADER_BYTES;
  return memory.bytes.subarray(start, start + memory.view.getUint32(offset + RECORD.frame_bytes, true));
}

/**
 * To be called during sink.diverged(): the offsets are valid only then. The result holds no view of a ring.
 */
export function evidenceOf(
  divergence: Divergence,
  primary: RecordMemory,
  secondary: RecordMemory,
): ReportedDivergence {
  const { flow, protocol, source, destination, sourcePort, destinationPort } = divergence;
  const { primaryFrameOffset, secondaryFrameOffset, streamOffset } = divergence;
  const primaryFrame = frameAt(primary, divergence.primaryOffset);
  const secondaryFrame = frameAt(secondary, divergence.secondaryOffset);
  return cutFrames({
    class: divergence.class,
    flow: {
      text: flow,
      protocol,
      source,
      destination,
      ...(sourcePort === undefined ? {} : { sourcePort }),
      ...(destinationPort === undefined ? {} : { destinationPort }),
    },
    waitedNs: divergence.waitedNs,
    detail: divergence.detail,
    ...(streamOffset === undefined ? {} : { streamOffset }),
    ...(primaryFrameOffset === undefined || secondaryFrameOffset === undefined
      ? {}
      : { difference: { primaryFrameOffset, secondaryFrameOffset } }),
    ...(primaryFrame === undefined ? {} : { primaryFrame }),
    ...(secondaryFrame === undefined ? {} : { secondaryFrame }),
  });
}
