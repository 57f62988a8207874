/**
 * Secondary records of an epoch that has not begun here yet: the secondary continues as soon as it has loaded
 * a checkpoint, shortly before this side learns it. In order of arrival; grows as needed, the ring bounds it.
 */
export class EarlyRecords {
  length = 0;
  slots = new Float64Array(256);
  offsets = new Float64Array(256);

  push(slot: number, offset: number): void {
    if (this.length === this.slots.length) {
      const slots = new Float64Array(this.length * 2);
      const offsets = new Float64Array(this.length * 2);
      slots.set(this.slots);
      offsets.set(this.offsets);
      this.slots = slots;
      this.offsets = offsets;
    }
    this.slots[this.length] = slot;
    this.offsets[this.length] = offset;
    this.length++;
  }
}
