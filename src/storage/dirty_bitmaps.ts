/**
 * What the primary has written since its replica's disks were last known to hold everything, as dirty bitmaps
 * on the quorums.
 *
 * While a VM is protected, its writes go straight into the secondary's images, and each checkpoint's STOP
 * flushes both sides. So the secondary's image differs from the primary's at most in what was written after
 * the last completed checkpoint's STOP. A bitmap that began before that STOP tells what; new ones are added
 * and old ones removed as checkpoints are completed, outside of their pauses. When the pair breaks, the
 * oldest continues to record.
 *
 * The names, "colo-GENERATION-EPOCH", say which replica a bitmap is about, so that an agent that was
 * restarted knows too.
 */
import type { QmpClient } from "../qmp/client.ts";
import type { NamedBlockNode } from "../qmp/query.ts";
import { blockNodes, messageOf } from "../qmp/vm.ts";

/** Records what is written since the first pass of a copy of changes began (changes_copy.ts). */
export const PASS_BITMAP = "colo-pass";
const NAME = /^colo-(\d+)-(\d+)$/;
/** Two checkpoints may be some milliseconds apart; a bitmap that covers more is only larger. */
const ROTATE_MS = 5_000;
/**
 * An answer to block-dirty-bitmap-add may come after the next checkpoint has begun and ended unseen; the one
 * after that is later.
 */
const CHECKPOINTS_TO_COVER = 2;

interface DirtyBitmap {
  name: string;
  generation: number;
  epoch: number;
}

/** The bitmaps of ours on a node, oldest first. */
export async function bitmapsOn(client: QmpClient, node: string): Promise<DirtyBitmap[]> {
  const found: DirtyBitmap[] = [];
  for (const { name = "", recording } of await rawBitmaps(client, node)) {
    const [, generation, epoch] = NAME.exec(name) ?? [];
    if (generation === undefined || !recording) continue;
    found.push({ name, generation: Number(generation), epoch: Number(epoch) });
  }
  return found.sort((a, b) => a.generation - b.generation || a.epoch - b.epoch);
}

/** Bytes that a bitmap marks as changed; undefined if there is no such bitmap. */
export async function dirtyBytes(
  client: QmpClient,
  node: string,
  bitmap: string,
): Promise<number | undefined> {
  return (await rawBitmaps(client, node)).find(({ name }) => name === bitmap)?.count;
}

async function rawBitmaps(
  client: QmpClient,
  node: string,
): Promise<NonNullable<NamedBlockNode["dirty-bitmaps"]>> {
  const nodes = await blockNodes(client);
  return nodes.find((one) => one["node-name"] === node)?.["dirty-bitmaps"] ?? [];
}

/**
 * The bitmap that covers all in which the replica `generation`, lost since, may differ; undefined: nothing is
 * known of it.
 */
export async function coveringBitmap(
  client: QmpClient,
  node: string,
  generation: number,
): Promise<string | undefined> {
  return (await bitmapsOn(client, node)).find((one) => one.generation === generation)?.name;
}

export function addBitmap(client: QmpClient, node: string, name: string): Promise<unknown> {
  return client.execute("block-dirty-bitmap-add", { node, name });
}

export function removeBitmap(client: QmpClient, node: string, name: string): Promise<unknown> {
  return client.execute("block-dirty-bitmap-remove", { node, name });
}

/** The bitmaps of one protected VM, on all its quorums alike. */
export class ReplicaBitmaps {
  /** Oldest first; `epoch` is the one in which QEMU's answer came. */
  readonly #added: { name: string; epoch: number; atMs: number }[] = [];
  #turn: Promise<void> | undefined;
  #ended = false;

  constructor(
    private readonly client: QmpClient,
    private readonly quorumNodes: readonly string[],
    private readonly generation: number,
    private readonly rotateMs = ROTATE_MS,
  ) {}

  /**
   * The replica `generation` is about to become complete; at least two checkpoints have to follow before it
   * is called so. Bitmaps of earlier replicas are removed.
   */
  async begin(epoch: number): Promise<void> {
    await this.#add(() => epoch);
    for (const node of this.quorumNodes) {
      for (const old of await bitmapsOn(this.client, node)) {
        if (old.generation !== this.generation) await removeBitmap(this.client, node, old.name);
      }
    }
  }

  /** Adopts the bitmaps that an earlier agent added for this generation; they count as added in `epoch`. */
  async resume(epoch: number): Promise<void> {
    const [first, ...others] = this.quorumNodes;
    if (first === undefined) return;
    const onOthers = await Promise.all(others.map((node) => bitmapsOn(this.client, node)));
    for (const { name, generation } of await bitmapsOn(this.client, first)) {
      if (generation !== this.generation) continue;
      if (!onOthers.every((bitmaps) => bitmaps.some((one) => one.name === name))) continue;
      this.#added.push({ name, epoch, atMs: performance.now() });
    }
  }

  /**
   * A checkpoint is complete, `epoch` has begun. Does not wait; errors are given to `onError`, and cost room
   * only.
   */
  checkpointed(epoch: number, currentEpoch: () => number, onError: (message: string) => void): void {
    if (this.#turn !== undefined || this.#ended || this.quorumNodes.length === 0) return;
    this.#turn = this.#rotate(epoch, currentEpoch)
      .catch((error) => onError(messageOf(error)))
      .finally(() => {
        this.#turn = undefined;
      });
  }

  /** The pair has come apart: nothing is removed from here on. */
  end(): void {
    this.#ended = true;
  }

  async #rotate(epoch: number, currentEpoch: () => number): Promise<void> {
    const covering = this.#added.findLastIndex((one) => one.epoch + CHECKPOINTS_TO_COVER <= epoch);
    for (const { name } of this.#added.slice(0, Math.max(0, covering))) {
      for (const node of this.quorumNodes) {
        if (this.#ended) return;
        await removeBitmap(this.client, node, name);
      }
      this.#added.shift();
    }
    const newest = this.#added.at(-1);
    if (this.#ended || (newest !== undefined && performance.now() - newest.atMs < this.rotateMs)) return;
    await this.#add(currentEpoch);
  }

  async #add(currentEpoch: () => number): Promise<void> {
    const name = `colo-${this.generation}-${currentEpoch()}`;
    for (const node of this.quorumNodes) await addBitmap(this.client, node, name);
    this.#added.push({ name, epoch: currentEpoch(), atMs: performance.now() });
  }
}
