/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A QEMU plugin that makes COLO usable without KVM. It mends three things that go wrong with checkpoints under TCG, where CPU,
 * time and the tracking of changed memory are QEMU's own business. Under KVM none of them exists.
 *
 * Stale code. TCG keeps translations of the guest's code. A checkpoint replaces the memory behind the back of whatever keeps
 * translations and code the same, so they have to be thrown away. QEMU up to 10.1 did so whenever a CPU's state was loaded
 * (cpu_common_post_load); since then it does so only for loadvm (accel/tcg/tcg-all.c, tcg_vm_change_state), not for COLO.
 * Seen with 11.1.2: a guest whose code changes ran old code after 97 of 100 checkpoints.
 *
 * A clock that runs ahead. The time stamp counter never goes back (system/cpu-timers.c, cpu_get_ticks: cpu_ticks_prev), not
 * even to the value that has just been loaded. But a secondary runs a little longer than the primary between two checkpoints,
 * since it resumes first; so its guest's clock gained about 30 ms with each one (seen: 3.2 s after 100), all its timers fired
 * early, and each checkpoint was a jump.
 *
 * Both are set right each time the VM stops: until it runs again no translation arises and the counter stands still. Only while
 * checkpoints come in, since a guest pays for each translation that is thrown away.
 *
 * Changed memory that is not sent. A store goes the fast way, past the dirty bitmap, when the CPU's TLB says that its page is marked
 * already. Reading the bitmap clears the marks and has to reset the TLB, but that is left out when every page found was waiting to
 * be sent anyway (include/system/physmem.h, physical_memory_sync_dirty_bitmap: num_dirty counts only pages new to the migration's
 * own bitmap). So it is after the last round of the first migration, when the VM stops soon enough after the round before it: the
 * primary goes on with a TLB that hides its stores, and the first checkpoint lacks the page. Seen with 11.1.2, comparing all pages
 * at each STOP: in 2 of 100 pairs one page was old, mostly a kernel stack, and the secondary's guest stood still or fell over.
 * The TLB is emptied each time the VM starts, on both sides.
 */

/* include/plugins/qemu-plugin.h: the interface of QEMU 11.1; nothing of it is used but being loaded. */
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
