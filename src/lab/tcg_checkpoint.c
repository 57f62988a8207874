/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A QEMU plugin that makes COLO usable without KVM. It corrects three faults of checkpoints under TCG,
 * where QEMU itself implements CPU, time and the tracking of changed memory. None of them exists under KVM.
 *
 * Stale code. TCG keeps translations of the guest's code. A checkpoint replaces the memory without the
 * mechanism that keeps translations and code equal, so the translations must be discarded. QEMU up to 10.1
 * did so whenever a CPU's state was loaded (cpu_common_post_load). Since then it does so only for loadvm
 * (accel/tcg/tcg-all.c, tcg_vm_change_state), not for COLO. Seen with 11.1.2: a guest whose code changes
 * ran old code after 97 of 100 checkpoints.
 *
 * A clock that is fast. The time stamp counter never goes back (system/cpu-timers.c, cpu_get_ticks:
 * cpu_ticks_prev), not even to the value that was just loaded. But a secondary runs a little longer than
 * the primary between two checkpoints, because it resumes first. So its guest's clock gained about 30 ms
 * with each one (seen: 3.2 s after 100), all its timers fired early, and each checkpoint was a jump.
 *
 * Both are corrected each time the VM stops: until it runs again no translation is made and the counter
 * stands still. This is done only while checkpoints arrive, because a guest pays for each discarded
 * translation.
 *
 * Changed memory that is not sent. A store takes the fast path, past the dirty bitmap, when the CPU's TLB
 * says that its page is already marked. Reading the bitmap clears the marks and must reset the TLB, but
 * QEMU omits that when every page found was already waiting to be sent (include/system/physmem.h,
 * physical_memory_sync_dirty_bitmap: num_dirty counts only pages new to the migration's own bitmap). This
 * happens after the last round of the first migration, if the VM stops soon after the round before it: the
 * primary continues with a TLB that hides its stores, and the first checkpoint lacks the page. Seen with
 * 11.1.2, comparing all pages at each STOP: in 2 of 100 pairs one page was old, mostly a kernel stack, and
 * the secondary's guest hung or crashed. The TLB is emptied each time the VM starts, on both sides.
 */

/* include/plugins/qemu-plugin.h: the interface of QEMU 11.1; the plugin only has to be loadable. */
__attribute__((visibility("default"))) int qemu_plugin_version = 7;

/* Exported by QEMU's program itself. */
void *qemu_add_vm_change_state_handler(void (*changed)(void *opaque, _Bool running, int state), void *opaque);
void tb_flush__exclusive_or_serial(void);
void *qemu_get_cpu(int index);
void tlb_flush(void *cpu);
_Bool migration_incoming_in_colo_state(void);
/* system/timers-state.h: its first member. */
extern struct {
	long cpu_ticks_prev;
} timers_state;

static void changed(void *opaque, _Bool running, int state)
{
	(void)opaque;
	(void)state;
	if (running) {
		void *cpu;

		for (int i = 0; (cpu = qemu_get_cpu(i)) != 0; i++)
			tlb_flush(cpu);
	}
	if (!migration_incoming_in_colo_state())
		return;
	/* Also when it starts: something may have read the counter while the VM stood still. */
	timers_state.cpu_ticks_prev = 0;
	if (!running)
		tb_flush__exclusive_or_serial();
}

__attribute__((visibility("default"))) int qemu_plugin_install(unsigned long id, const void *info, int argc,
							       char **argv)
{
	(void)id;
	(void)info;
	(void)argc;
	(void)argv;
	qemu_add_vm_change_state_handler(changed, 0);
	return 0;
}
